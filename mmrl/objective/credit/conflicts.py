"""Tokens that right and wrong rollouts of a group share are not pushed both ways."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.errors import ConfigError
from mmrl.objective.credit.tokens import training_tokens
from mmrl.objective.groups import masked_mean
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, NEEDS, stage


@stage(
    "credit",
    paper="GTPO: trajectory-based policy optimization, arXiv 2508.03772",
    formula="lam_t delta_i (A_i - gamma mean H_i); lam: W (A > 0) or 0 (A < 0) on the shared start and end, else 1",
    confidence="verified",
    needs=lambda *, gamma=0.1, **_: columns("actions") | ({"entropy": NEEDS["entropy"]} if gamma else {}),
    scope="batch",
    modalities=LANGUAGE,
)
class gtpo:
    """Tokens shared by right and wrong answers at the same place are protected; unsure answers are dropped. (B, T)

    weight     of shared tokens in right answers, for each direction; in wrong answers they weigh 0
    gamma      entropy penalty in place of KL; 0 turns entropy off, and no entropy is asked for
    threshold  answers of a mean entropy above it are dropped if the first batch lay below it: the paper's ln 2, or
               the authors' code's .7
    always     they are dropped whatever the first batch was, as in that code
    skip_zero  answers without advantage get no entropy penalty (ours; the code pushes them by -gamma H)

    A token is shared if the same id stands at the same place, counted from the start or from the end, in a right
    and in a wrong rollout of the group; only the unbroken run from that end counts. Remembers the mean entropy
    of the first batch. Source: the authors' code (winstonsmith1897/GTPO), without its division of each sequence
    by its number of shared tokens, which looks accidental.
    """

    def __init__(
        self, *, weight: float = 2.0, gamma: float = 0.1, threshold: float = math.log(2), skip_zero: bool = True,
        always: bool = False,
    ):  # fmt: skip
        self.weight, self.gamma, self.threshold, self.skip_zero = weight, gamma, threshold, skip_zero
        self.always = always
        self.initial: float | None = None

    def __call__(self, advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.actions is None:
            raise ConfigError("gtpo compares token ids, and this batch has no actions")
        sign = masked_mean(advantage, batch.mask).sign() * batch.trained
        lam = torch.ones_like(advantage)
        for side in ("start", "end"):
            shared = shared_run(batch.actions, batch.mask, batch.group, sign, side)
            conflict = torch.where(sign[:, None] > 0, self.weight, 0.0).to(lam.dtype)
            lam = torch.where(shared, lam * conflict, lam)
        return lam * self._regulated(advantage, batch), batch.loss_mask

    def _regulated(self, advantage: Tensor, batch: Batch) -> Tensor:
        if not self.gamma:
            return advantage
        entropy = masked_mean(batch["entropy"], batch.mask)
        if self.initial is None:
            self.initial = masked_mean(batch["entropy"], training_tokens(batch), dim=None).item()
        unsure = (entropy > self.threshold) & (self.always or self.initial < self.threshold)
        penalised = advantage - self.gamma * entropy[:, None].to(advantage.dtype) * batch.mask
        if self.skip_zero:
            penalised = torch.where(advantage == 0, advantage, penalised)
        return penalised.masked_fill(unsure[:, None], 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.initial = state["initial"]


def shared_run(actions: Tensor, mask: Tensor, group: Tensor, sign: Tensor, side: str = "start") -> Tensor:
    """(B, T) bool: the unbroken run from the start (or end) of tokens found in right and wrong rollouts alike.

    sign (B,) > 0 right, < 0 wrong, 0 takes no part. Two tokens match if they are equal and stand at the same
    place, counted from that side.
    """
    # sampled tokens to the left (or right) edge, whatever gaps the mask has
    order = torch.argsort((~mask).long() if side == "start" else mask.long(), dim=1, stable=True)
    ids, here = actions.gather(1, order), mask.gather(1, order)
    found = torch.zeros_like(mask)
    for g in torch.unique(group).tolist():
        rows = (group == g).nonzero().squeeze(1)
        equal = (ids[rows, None] == ids[None, rows]) & here[rows, None] & here[None, rows]
        in_right = (equal & (sign[rows] > 0)[None, :, None]).any(1)
        in_wrong = (equal & (sign[rows] < 0)[None, :, None]).any(1)
        found[rows] = in_right & in_wrong & (sign[rows] != 0)[:, None]
    run = found.long()
    run = run.cumprod(1) if side == "start" else run.flip(1).cumprod(1).flip(1)
    return torch.zeros_like(mask).scatter(1, order, run.bool())
