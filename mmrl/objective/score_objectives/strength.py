"""Preference pairs whose labels an ensemble doubts: turned around, softened or left out."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmrl.errors import ConfigError
from mmrl.objective.numerics import outcome
from mmrl.objective.score_objectives.pairs import mean_over_prompts
from mmrl.record import Batch
from mmrl.stages import stage

Treatment = Literal["flip", "soften", "drop", "keep"]


def doubted(strength: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """(n,), (n,) bool: pairs whose label is wrong, with a strength of -bound or less, and those that are unsure."""
    wrong = strength <= -bound
    return wrong, ~wrong & (strength < bound)


@stage(
    "score_objective",
    paper="Secrets of RLHF in Large Language Models Part II: Reward Modeling, arXiv 2401.06080",
    formula="(1 - a) log sigmoid(z) + a log sigmoid(-z), z = +-beta (d_c - d_r) - m |u|; the sign turns where the "
    "strength u / std is -bound or less, a > 0 where it lies within the bound",
    confidence="partly",
    needs=("preferred", "preference_margin", "preference_strength"),
)
def secrets_of_rlhf_ii(
    scores: Tensor,
    batch: Batch,
    *,
    beta: float = 0.1,
    bound: float = 1.0,
    wrong: Treatment = "flip",
    unsure: Treatment = "soften",
    smoothing: float = 0.2,
    margin: float = 0.0,
) -> Tensor:
    """DPO on labelled pairs, each label treated as an ensemble of reward models trusts it. Returns a scalar.

    beta       as in `dpo`
    bound      of the strength |mean margin| / std, from which the ensemble is sure. Larger doubts more labels
    wrong      what becomes of pairs where it is sure of the opposite: flip, soften, drop or keep
    unsure     the same of pairs where its members disagree
    smoothing  a of a softened label: how likely it is to be wrong, below .5
    margin     times the ensemble's mean margin is asked of z (the paper's adaptive margin), in units of beta (d - d)

    Pairs of which a reward or the strength is missing are left out (`preference/unknown_fraction`). Pair it with score
    `reference_log_ratio` and rollout `preference_pairs`. Source: a public note with the paper's equations, of which
    bound, smoothing and the treatment by strength in place of ranks of the mean (a fifth flipped) are ours; the paper
    trains reward models on such pairs.
    """
    if not 0 <= smoothing < 0.5 or bound < 0 or margin < 0:
        raise ConfigError(
            f"secrets_of_rlhf_ii: smoothing={smoothing}, bound={bound}, margin={margin}; expected below .5, 0 or more, "
            "and 0 or more"
        )
    chosen = batch["preferred"] > 0
    together = batch.group[:, None] == batch.group[None, :]
    first, second = (together & chosen[:, None] & ~chosen[None, :]).nonzero(as_tuple=True)
    told = outcome(batch)[first] + outcome(batch)[second] + batch["preference_strength"][first]
    known = ~told.isnan()
    first, second = first[known], second[known]
    bad, vague = doubted(batch["preference_strength"][first], bound)
    treated = {name: torch.zeros_like(bad) for name in get_args(Treatment)}
    for where, treatment in ((bad, wrong), (vague, unsure)):
        if treatment not in treated:
            raise ConfigError(f"secrets_of_rlhf_ii: {treatment!r}; expected flip, soften, drop or keep")
        treated[treatment] |= where
    kept = ~treated["drop"]
    first, second, flipped, softened = first[kept], second[kept], treated["flip"][kept], treated["soften"][kept]
    sign, soft = 1 - 2 * flipped.to(scores), smoothing * softened.to(scores)
    asked = margin * batch["preference_margin"][first].abs().to(scores)
    z = sign * beta * (scores[first] - scores[second]) - asked
    values = (1 - soft) * logsigmoid(z) + soft * logsigmoid(-z)
    return mean_over_prompts(values, first, batch)
