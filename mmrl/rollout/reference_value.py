"""What the policy that a run began with would earn on a prompt, from the answers of the one it has become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.plan import Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "reference_value",
    method="a_lol",
    paper="Advantage-Leftover Lunch, arXiv 2305.14718",
    formula="V(x) = sum_i w_i r_i / sum_i w_i over all answers to x so far, "
    "w_i = min(exp(sum_t(lp_ref - lp_old)), most)",
    confidence="ours",
    needs=("ref_log_probs",),
    modalities=LANGUAGE,
)
class ReferenceValue(Strategy):
    """Column `reference_value (B,)`: the reference policy's mean reward on a row's prompt.

    most  a weight is no larger: what the reference would say far more often counts at most so many times

    The rows of a prompt's first visit mostly are the reference's own, with weights near 1, and stay counted at later
    visits. Where no row of a prompt was ever scored it is 0. Answers of others (given rows) do not enter. A-LoL has a
    value head for it, fitted to the reference's answers before training; this measures the same number, and needs
    no head.
    """

    origins = ()
    made = ("reference_value",)

    def __init__(self, *, most: float = 10.0) -> None:
        if most < 1:
            raise ConfigError(
                f"rollout 'reference_value': most={most}; expected at least 1, the weight of its own rows"
            )
        self.most = most
        self.known: dict[int, tuple[float, float]] = {}

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        assert batch.prompt is not None
        weight = self.weights(batch)
        for prompt in torch.unique(batch.prompt).tolist():
            rows = batch.prompt == prompt
            earned, size = self.known.get(prompt, (0.0, 0.0))
            earned += float((weight * batch.reward.nan_to_num(0))[rows].sum())
            self.known[prompt] = earned, size + float(weight[rows].sum())
        worth = [self.known[p][0] / self.known[p][1] if self.known[p][1] else 0.0 for p in batch.prompt.tolist()]
        return {"reference_value": torch.tensor(worth, dtype=torch.float32, device=batch.mask.device)}

    def weights(self, batch: Batch) -> Tensor:
        """(B,) float64: how much more likely the reference would have written each scored row of the policy's own."""
        apart = ((batch["ref_log_probs"] - batch.old_log_probs).double() * batch.mask).sum(1)
        own = ~batch.reward.isnan()
        if batch.source is not None:
            own = own & (batch.source == 0)
        return apart.exp().clamp(max=self.most) * own

    def state_dict(self) -> dict[str, Any]:
        return {"known": {str(prompt): list(held) for prompt, held in self.known.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.known = {int(prompt): (held[0], held[1]) for prompt, held in state["known"].items()}
