"""Anchors: frozen copies of the trained weights that follow them by a decay of their own.

An anchor is an adapter beside the one that trains, or a second module after full fine-tuning, so that one forward can
ask both: the weights of the update are never touched between its forward and its backward. Source of the schedule:
DiffusionNFT, arXiv 2509.16117 (NVlabs/DiffusionNFT, train_nft_sd3.py, `return_decay`), which CRD writes with a start
value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.policies import adapters
from mmrl.policies.sharding import is_sharded_tensor, plain_name, whole
from mmrl.settings import Section


class AnchorConfig(Section):
    """How an anchor follows: anchor <- d anchor + (1 - d) weights, d after n optimizer steps.

    flat    optimizer steps for which d = `start`
    start   the first d: 0 copies the weights, 1 keeps the anchor
    rate    by which d grows with each optimizer step after that
    hold    the largest d. NFT: rate .001 and hold .5; for one narrow reward flat 75, rate .0075, hold .999
    moves   after each rollout batch, or after each optimizer step ("update")
    every   optimizer steps between two moves (`moves: update`); SAGE-GRPO copies the weights every 10
    samples  optimizer steps after which rollouts are sampled with it: 0 always, null never
    """

    flat: int = Field(0, ge=0)
    start: float = Field(0.0, ge=0, le=1)
    rate: float = Field(0.001, ge=0)
    hold: float = Field(0.5, ge=0, le=1)
    moves: Literal["batch", "update"] = "batch"
    every: int = Field(1, ge=1)
    samples: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _pace(self) -> AnchorConfig:
        if self.every > 1 and self.moves == "batch":
            raise ValueError(f"every={self.every} counts optimizer steps: set moves: update")
        return self

    def decay_at(self, updates: int) -> float:
        """d after so many optimizer steps."""
        if updates < self.flat:
            return self.start
        return min(self.start + (updates - self.flat) * self.rate, self.hold)


class Anchor:
    """The copy of one anchor, of one or several trained modules.

    copies  modules by name after full fine-tuning; None where the modules have adapters
    """

    def __init__(self, name: str, config: AnchorConfig, modules: Mapping[str, Any]):
        self.name, self.config = name, config
        self.copies: dict[str, nn.Module] | None = None
        if all(adapters.is_adapted(module) for module in modules.values()):
            for module in modules.values():
                adapters.add_frozen_adapter(module, name)
        else:
            self.copies = {key: adapters.frozen_copy(module) for key, module in modules.items()}

    def on(self, device: torch.device) -> dict[str, nn.Module] | None:
        """The copies there; None where the adapters are switched instead."""
        return None if self.copies is None else {key: copy.to(device) for key, copy in self.copies.items()}

    def pairs(self, modules: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """{name of a trained parameter: (the anchor's, itself)}, looked up anew: preparing a module replaces them."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for key, module in modules.items():
            if self.copies is None:
                pairs: dict = adapters.adapter_pairs(module, self.name)
            else:
                own = dict(self.copies[key].named_parameters())
                pairs = {n: (own[n], p) for n, p in module.named_parameters() if p.requires_grad}
            found |= {plain_name(f"{key}.{n}"): pair for n, pair in pairs.items()}
        return found

    @torch.no_grad()
    def move(self, modules: Mapping[str, Any], updates: int) -> None:
        """Towards the weights, after `updates` optimizer steps in all."""
        if updates % self.config.every:
            return
        decay = self.config.decay_at(updates)
        for own, trained in self.pairs(modules).values():
            now = trained.detach() if is_sharded_tensor(own) else whole(trained.detach())
            if decay == 0:
                own.copy_(now)
            else:
                own.mul_(decay).add_(now.to(own), alpha=1 - decay)

    def tensors(self, modules: Mapping[str, Any]) -> dict[str, Tensor]:
        """{`name|parameter`: live tensor}, for a checkpoint."""
        return {f"{self.name}|{n}": own.detach() for n, (own, _) in self.pairs(modules).items()}

    @torch.no_grad()
    def load(self, modules: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """What `tensors` gave. A checkpoint without it is refused: the anchor would silently start anew."""
        pairs = self.pairs(modules)
        missing = [n for n in pairs if f"{self.name}|{n}" not in state]
        if missing:
            raise PolicyError(
                f"the checkpoint has no {self.name} weights ({len(missing)} tensors, {missing[0]} ...), which this run "
                f"keeps: it was written without policy.{self.name}"
            )
        for name, (own, _) in pairs.items():
            adapters.put(own, state[f"{self.name}|{name}"])
