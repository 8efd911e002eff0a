"""LaSeR: the log-prob of one reserved token after the answer becomes a self-score, fitted to the verifier."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.groups import group_normalized, group_std
from mmrl.objective.numerics import at_least_float32, labels
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, Need, stage


def _needs(weights: str):
    def needs(*, token: int = 0, **_) -> dict[str, Need]:
        return {"reserved_token": Need("token_log_prob", weights=weights, options=(("token", token),))}

    return needs


def at_the_end(log_probs: Tensor, batch: Batch) -> Tensor:
    """(B,) the log-prob where the last action was predicted; (B,) values, read by the caller, stay as they are."""
    log_probs = at_least_float32(log_probs)
    if log_probs.dim() == 1:
        return log_probs
    last = (batch.mask.flip(1).long().cumsum(1).flip(1) == 1) & batch.mask
    return (log_probs * last).sum(1)


@stage(
    "regularizer",
    paper="LaSeR: last-token self-rewarding, arXiv 2510.14943",
    formula="(b (lp_new(z | prompt, answer) - c) - y)^2",
    confidence="verified",
    needs=_needs("current"),
    modalities=LANGUAGE,
)
def laser(
    evaluation: Evaluation, batch: Batch, *, token: int = 0, scale: float = 0.1, constant: float = -23.0
) -> Tensor:
    """Squared error of the self-score against the verifier's label. Returns (B, T), constant along a row.

    token     id of the reserved token z, one that never appears in answers
    scale     b, constant  c: a self-score is scale * (log-prob - constant)

    Usual coefficient 0.1, with `aggregation: class_balanced` (the paper's class weights, truncated answers out).
    Source: RUCBM/LaSeR, dp_actor.py, which multiplies the tempered log-prob by the temperature. Ours: z is read
    where the end token is predicted, not one position behind it, so that no position is added to the pass.
    """
    score = scale * (at_the_end(evaluation["reserved_token"], batch) - constant)
    return ((score - labels(batch).to(score)) ** 2)[:, None] * batch.mask


@stage(
    "credit",
    "laser",
    paper="LaSeR: last-token self-rewarding, arXiv 2510.14943",
    formula="A <- (1 - k) A + k z_group(clip(s, 0, 1)), after a warm-up",
    confidence="verified",
    needs=_needs("old"),
    modalities=LANGUAGE,
    grain="row",
)
def laser_credit(
    advantage: Tensor,
    batch: Batch,
    *,
    token: int = 0,
    scale: float = 0.1,
    constant: float = -23.0,
    share: float = 0.1,
    warmup: int = 200,
    spread: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Mixes the standardised self-score into the advantage. Returns (B, T) twice.

    token, scale, constant  as in regularizer `laser`
    share                   k, weight of the self-score
    warmup                  steps before it counts
    spread                  groups whose self-scores deviate by no more are left alone

    Source: RUCBM/LaSeR, ray_trainer.py.
    """
    if batch.step < warmup:
        return advantage, batch.loss_mask
    score = (scale * (at_the_end(batch["reserved_token"], batch) - constant)).clamp(0, 1)
    own = group_normalized(score, batch.group, batch.counted)[:, None].to(advantage)
    wide = (group_std(score, batch.group, batch.counted) > spread)[:, None]
    mixed = (1 - share) * advantage + share * own
    return torch.where(wide & batch.counted[:, None], mixed, advantage) * batch.mask, batch.loss_mask
