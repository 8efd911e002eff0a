"""A critic of answers in the making: least squares on what is known of each action when it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.numerics import position
from mmrl.record import Batch
from mmrl.rollout.plan import Strategy
from mmrl.stages import LANGUAGE, stage

FEATURES = 6


@stage(
    "rollout",
    "critic",
    method="ma_rlhf",
    paper="MA-RLHF: macro actions, arXiv 2410.02743",
    formula="V_t = w . phi_t, w = (ridge I + sum phi phi^T)^-1 sum phi r over the rows of earlier steps, which fade",
    confidence="ours",
    needs=("entropy",),
    modalities=LANGUAGE,
)
class Critic(Strategy):
    """Column `values (B, T)`: what a rollout is expected to earn, as it stands before each action.

    keep   of the weight of earlier steps at each new one: smaller follows a policy that changes fast
    ridge  holds the weights small while little was seen; in rows

    phi is 1, the prompt's mean reward at earlier visits (of all prompts, at the first), how much of the longest answer
    is written, the mean log-prob and the mean entropy of what is written, and the entropy of the action to come. A step
    is judged by what earlier ones taught, so that no outcome is its own baseline, and the first by nothing: 0. The
    authors train a value network beside the policy; this one reads no hidden states, has six weights and no gradient.
    """

    origins = ()
    made = ("values",)

    def __init__(self, *, keep: float = 0.9, ridge: float = 1.0) -> None:
        if not 0 < keep <= 1 or ridge <= 0:
            raise ConfigError(f"rollout 'critic': keep={keep}, ridge={ridge}; expected (0, 1], and more than 0")
        self.keep, self.ridge = keep, ridge
        self.moments = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
        self.targets = torch.zeros(FEATURES, dtype=torch.float64)
        self.known: dict[int, tuple[float, int]] = {}

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        features = self.features(batch)
        weights = torch.linalg.solve(self.moments + self.ridge * torch.eye(FEATURES).double(), self.targets)
        values = (features @ weights.to(features.device)) * batch.mask
        self._learn(batch, features)
        return {"values": values.to(batch.old_log_probs.dtype)}

    def features(self, batch: Batch) -> Tensor:
        """(B, T, FEATURES) float64, 0 outside the mask."""
        mask = batch.mask.double()
        before = (position(batch.mask).double() - 1).clamp(min=0) * mask
        entropy, log_probs = batch["entropy"].double() * mask, batch.old_log_probs.double() * mask

        def so_far(values: Tensor) -> Tensor:
            return (values.cumsum(1) - values) / before.clamp(min=1)

        longest = float(batch.max_length or batch.mask.shape[1])
        mean = torch.tensor(self._means(batch), dtype=torch.float64, device=mask.device)
        parts = [torch.ones_like(mask), mean[:, None].expand_as(mask), before / longest, so_far(log_probs),
                 so_far(entropy), entropy]  # fmt: skip
        return torch.stack(parts, 2) * mask[..., None]

    def _means(self, batch: Batch) -> list[float]:
        assert batch.prompt is not None
        total, count = (sum(held[i] for held in self.known.values()) for i in (0, 1))
        usual = total / count if count else 0.0
        own = [self.known.get(prompt) for prompt in batch.prompt.tolist()]
        return [held[0] / held[1] if held else usual for held in own]

    def _learn(self, batch: Batch, features: Tensor) -> None:
        """Each scored row weighs the same, however long it is."""
        assert batch.prompt is not None
        scored = batch.counted & ~batch.reward.isnan()
        share = (batch.mask / batch.mask.sum(1, keepdim=True).clamp(min=1))[scored].double()
        rows, reward = features[scored], batch.reward[scored].double()
        self.moments = self.keep * self.moments + torch.einsum("btf,btg,bt->fg", rows, rows, share).cpu()
        self.targets = self.keep * self.targets + torch.einsum("btf,bt,b->f", rows, share, reward).cpu()
        for prompt, earned in zip(batch.prompt[scored].tolist(), reward.tolist(), strict=True):
            total, count = self.known.get(prompt, (0.0, 0))
            self.known[prompt] = total + earned, count + 1

    def state_dict(self) -> dict[str, Any]:
        known = {str(prompt): list(held) for prompt, held in self.known.items()}
        return {"moments": self.moments.tolist(), "targets": self.targets.tolist(), "known": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments = torch.tensor(state["moments"], dtype=torch.float64)
        self.targets = torch.tensor(state["targets"], dtype=torch.float64)
        self.known = {int(prompt): (held[0], int(held[1])) for prompt, held in state["known"].items()}
