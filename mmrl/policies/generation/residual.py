"""ResiP: a small network beside a frozen generator that adds to what it says.

The generator's last layer makes its velocity v of features h of the state, the time and the prompt. The network reads
both and adds to v, which stays what it was until the network is trained. It is kept and switched as an adapter, so
that references, anchors, checkpoints and exports are those of any other; what loads it without this class, as LoRA,
is refused by the shapes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mmrl.errors import PolicyError
from mmrl.tools import tool


@tool(
    "resip",
    command="mmrl train flow CONFIG recipe=resip; with another recipe policy.lora.residual=true",
    paper="ResiP: From Imitation to Refinement, arXiv 2407.16677; code ankile/robust-rearrangement",
    formula="v = v_base + scale B silu(A [h; v_base]), B = 0 at first; the base is frozen",
    confidence="partly",
    modalities=("flow",),
    trains=True,
)
def residual(features: Tensor, base: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    """What a network of one hidden layer says beside a frozen layer, from its features (..., n) and output (..., m).

    first  (n + m) -> `policy.lora.rank`; last: to m, 0 at first

    What is added is this times alpha / rank, the scale of LoRA; the authors' is .1 at a width of 512. Source:
    src/models/residual.py: an action is the base's plus .1 times what an MLP says of observation and base action, whose
    last layer begins near 0.
    """
    return last(silu(first(torch.cat([features, base], dim=-1))))


@cache
def head_class() -> type[nn.Module]:
    """The layer of PEFT that adds `residual` to a linear layer."""
    from peft.tuners.lora.layer import Linear

    class ResidualHead(Linear):
        """A linear layer with a network, of which an adapter's A and B are the layers, on its input and its output."""

        def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
            """Of the network: it reads the layer's input beside its output."""
            base: Any = module
            return base.in_features + base.out_features, base.out_features

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            base = self.base_layer(x, *args, **kwargs)
            said = base
            for name in [] if self.disable_adapters else self.active_adapters:
                if name in self.lora_A:
                    first, last = self.lora_A[name], self.lora_B[name]
                    own = residual(x.to(first.weight.dtype), base.to(first.weight.dtype), first, last)
                    said = said + (self.scaling[name] * own).to(base.dtype)
            return said

        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            raise PolicyError(
                "policy.lora.residual: a network beside the last layer is no change of its matrix, and cannot be "
                "folded in; save the adapter without merged"
            )

    return ResidualHead


def has_head(module: nn.Module) -> bool:
    """Whether the adapters of a transformer are such networks."""
    return any(isinstance(part, head_class()) for part in module.modules())
