"""Rows whose actions are of several kinds: partly tokens and partly denoising steps, say.

Such a row is the concatenation of its parts along `T`, and the column `kind (B, T)` says what an action is, as a place
in `mmrl.batch.KINDS`. Each kind has its own likelihood, objective and weights (`mmrl.objective.mixed`): under one mean
over all actions ten steps beside two hundred tokens would weigh five per cent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.batch import Batch, Evaluation

KIND = "kind"


@dataclass
class Places:
    """Where the actions of one kind stand in rows (B, T).

    index  (B, W) their columns, in order; here (B, W) bool, False past a row's last one
    width  T
    """

    index: Tensor
    here: Tensor
    width: int

    @classmethod
    def of(cls, kind: Tensor, number: int) -> Places:
        """kind (B, T)"""
        chosen = kind == number
        width = max(int(chosen.sum(1).max()), 1) if len(kind) else 1
        index = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        return cls(index, chosen.gather(1, index), kind.shape[1])

    def take(self, values: Tensor) -> Tensor:
        """(B, T, ...) -> (B, W, ...) side by side, 0 past a row's last one; with gradient."""
        index, here = self._like(values)
        taken = values.gather(1, index)
        return torch.where(here, taken, torch.zeros_like(taken))

    def put(self, values: Tensor) -> Tensor:
        """(B, W, ...) -> (B, T, ...) back in their places, 0 elsewhere."""
        index, here = self._like(values)
        blank = values.new_zeros(len(values), self.width, *values.shape[2:])
        return blank.scatter(1, index, torch.where(here, values, torch.zeros_like(values)))

    def _like(self, values: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*self.index.shape, *[1] * (values.dim() - 2))
        wide = (*self.index.shape, *values.shape[2:])
        here = self.here.to(values.device).view(shape)
        return self.index.to(values.device).view(shape).expand(wide), here

    def columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those per action side by side, those per row as they are."""
        return {name: self.take(value) if self.per_action(value) else value for name, value in columns.items()}

    def per_action(self, value: Tensor) -> bool:
        return value.dim() > 1 and value.shape[:2] == (len(self.index), self.width)

    def of_batch(self, batch: Batch) -> Batch:
        """What the rows would be if they held these actions alone."""
        fields = {n: getattr(batch, n) for n in ("mask", "old_log_probs", "advantage", "loss_mask", "actions", "owner")}
        taken: dict[str, Any] = {n: self.take(v) for n, v in fields.items() if v is not None and v.dim() > 1}
        return replace(batch, **taken, length=taken["mask"].sum(1), columns=self.columns(batch.columns))

    def of_evaluation(self, evaluation: Evaluation) -> Evaluation:
        return replace(
            evaluation, log_probs=self.take(evaluation.log_probs), columns=self.columns(evaluation.columns)
        )  # fmt: skip
