"""Muon for the matrices inside a network: steps of one length in every direction of a matrix, from torch's own kernel.

A step is the orthogonalised running mean of the gradients (K. Jordan et al., kellerjordan.github.io/posts/muon), as
long as one of AdamW would be (arXiv 2502.16982), so rates and decay that suit AdamW hold. Embeddings, heads, biases,
norms and convolutions are AdamW's. A matrix keeps one moment in place of two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError

MOMENTUM, STEPS, EPSILON = 0.95, 5, 1e-7
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def refuse_missing() -> None:
    """ConfigError where this torch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"training.optimizer.name=muon needs a torch with torch.optim.Muon, this is {torch.__version__}: "
            "pip install 'torch>=2.9', or choose adamw or fused"
        )


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights with two axes that are neither embedding nor output layer, tied ones included."""
    ends = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for part in module.modules():
        head = part.get_output_embeddings() if hasattr(part, "get_output_embeddings") else None
        ends |= {id(p) for p in head.parameters()} if head is not None else set()
    return [p for p in module.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in ends]


def muon_step(weights: list[Tensor], gradients: list[Tensor], means: list[Tensor], group: dict[str, Any]) -> None:
    """In place: `weights` and the running `means` of their gradients, float32 matrices of equal shapes."""
    from torch.optim._muon import muon

    if any(hasattr(weight, "to_local") for weight in weights):
        raise ConfigError(
            "training.optimizer.name=muon needs whole matrices, and these are shards: choose adamw, fused or 8bit, or "
            "training.sharding=ddp"
        )
    muon(
        weights, gradients, means, lr=group["lr"], weight_decay=group["weight_decay"], momentum=MOMENTUM, nesterov=True,
        ns_coefficients=COEFFICIENTS, ns_steps=STEPS, eps=EPSILON, adjust_lr_fn="match_rms_adamw", has_complex=False,
    )  # fmt: skip
