"""Objectives on pairs of rollouts of one prompt: DPO and its relatives, CoPG, DNO, DYPO's group alignment, KTO."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_sum
from mmrl.objective.numerics import either, labels, outcome
from mmrl.objective.score_objectives.labels import per_prompt, prompts
from mmrl.record import Batch
from mmrl.stages import stage


def ordered_pairs(batch: Batch, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """(n,), (n,) rows of all pairs in which the first has a reward above the second's by more than `margin`."""
    together = batch.group[:, None] == batch.group[None, :]
    worth = outcome(batch)
    better = worth[:, None] - worth[None, :] > margin
    winner, loser = (together & better).nonzero(as_tuple=True)
    return winner, loser


def mean_over_prompts(values: Tensor, rows: Tensor, batch: Batch) -> Tensor:
    """Mean over the pairs of a prompt, then over prompts; prompts without pairs add 0."""
    count = torch.zeros(len(batch), dtype=values.dtype, device=values.device).index_add(
        0, rows, torch.ones_like(values)
    )
    total = torch.zeros_like(count).index_add(0, rows, values)
    mean = group_sum(total, batch.group) / group_sum(count, batch.group).clamp(min=1)
    return per_prompt(mean, batch.group) / prompts(batch)


@stage(
    "score_objective",
    paper="DPO, arXiv 2305.18290; IPO, arXiv 2310.12036; SLiC, arXiv 2305.10425; SimPO, arXiv 2405.14734",
    formula="log sigmoid(z), z = beta (d_w - d_l) - target; IPO: -(d_w - d_l - 1/(2 beta))^2; hinge: -max(0, 1 - z)",
    confidence="verified",
)
def dpo(
    scores: Tensor,
    batch: Batch,
    *,
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
    beta: float = 0.1,
    target: float = 0.0,
    margin: float = 0.0,
) -> Tensor:
    """Preference objectives on every pair of a group that the reward orders. Returns a scalar.

    loss    "sigmoid" (DPO), "ipo", "hinge" (SLiC)
    beta    smaller lets the policy move further from the reference
    target  margin asked of z: SimPO's gamma
    margin  pairs whose rewards differ by no more than this are left out

    Score `reference_log_ratio` makes it DPO; score `log_prob`, reduce "mean", makes it SimPO. Source: TRL.
    """
    winner, loser = ordered_pairs(batch, margin)
    apart = scores[winner] - scores[loser]
    if loss == "sigmoid":
        values = logsigmoid(beta * apart - target)
    elif loss == "ipo":
        values = -((apart - 1 / (2 * beta)) ** 2)
    elif loss == "hinge":
        values = -(1 - beta * apart + target).clamp(min=0)
    else:
        raise ConfigError(f"dpo: loss is {loss!r}; expected sigmoid, ipo or hinge")
    return mean_over_prompts(values, winner, batch)


@stage(
    "score_objective",
    paper="KTO, arXiv 2402.01306",
    formula="-mean w (1 - sigmoid(+-beta (d_i - z0))), z0 = max(mean d, 0) without gradient",
    confidence="verified",
)
def kto(scores: Tensor, batch: Batch, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """Preference objective on single labelled rollouts. Returns a scalar.

    beta                    as in `dpo`
    desirable, undesirable  weights of the two classes

    Pair it with score `reference_log_ratio`. Ours: the KL point z0 is the batch's mean log-ratio, where TRL pairs
    prompts with other prompts' answers.
    """
    good = labels(batch) > 0.5
    point = scores.detach().mean().clamp(min=0)
    gain = torch.sigmoid(beta * torch.where(good, scores - point, point - scores))
    weight = either(good, desirable, undesirable, scores)
    return -(weight * (1 - gain)).mean()


@stage(
    "score_objective",
    paper="CoPG: contrastive policy gradient, arXiv 2406.19185",
    formula="mean over pairs of (r_i - r_j)(d_i - d_j) - (beta/2)(d_i - d_j)^2",
    confidence="partly",
)
def copg(scores: Tensor, batch: Batch, *, beta: float = 0.1) -> Tensor:
    """Off-policy pairwise policy gradient: the other sample is the baseline, no importance weights. A scalar.

    beta  strength of the pull to the reference

    Pair it with score `reference_log_ratio`. With rewards in {0, 1} it is IPO up to a constant. Source: a review of
    the paper and notes on Command A, whose `((r_i - r_j) - beta (d_i - d_j))^2` has this gradient up to a factor.
    """
    together = torch.triu(batch.group[:, None] == batch.group[None, :], diagonal=1)
    first, second = together.nonzero(as_tuple=True)
    apart = scores[first] - scores[second]
    worth = outcome(batch).to(scores)
    gain = worth[first] - worth[second]
    return mean_over_prompts(gain * apart - beta / 2 * apart**2, first, batch)


@stage(
    "score_objective",
    paper="DNO: direct Nash optimisation, arXiv 2404.03715",
    formula="p log sigmoid(z) + (1 - p) log sigmoid(-z), z = beta (d_a - d_b)",
    confidence="partly",
)
def dno(
    scores: Tensor, batch: Batch, *, beta: float = 0.1, margin: float = 0.0, temperature: float | None = None
) -> Tensor:
    """Regress pairwise log-ratios onto preference probabilities. Returns a scalar.

    beta         as in `dpo`
    margin       only pairs whose rewards differ by more train
    temperature  p = sigmoid((r_a - r_b) / temperature); None: p = 1, the practical variant on large-margin pairs

    Pair it with score `log_ratio`: the reference is the policy at the start of the iteration. Source: abstract;
    win rates from an oracle can be the reward.
    """
    winner, loser = ordered_pairs(batch, margin)
    z = beta * (scores[winner] - scores[loser])
    if temperature is None:
        return mean_over_prompts(logsigmoid(z), winner, batch)
    worth = outcome(batch).to(z)
    preference = torch.sigmoid((worth[winner] - worth[loser]) / temperature)
    return mean_over_prompts(preference * logsigmoid(z) + (1 - preference) * logsigmoid(-z), winner, batch)


@stage(
    "score_objective",
    method="dypo",
    paper="DYPO: dynamic SFT / RL routing with group alignment, arXiv 2604.08926",
    formula="mean over (success, failure) pairs of log sigmoid(beta (d_s - d_f))",
    confidence="verified",
)
def group_alignment(scores: Tensor, batch: Batch, *, beta: float = 0.1) -> Tensor:
    """DYPO's group alignment loss: every success against every failure of the prompt. Returns a scalar.

    beta  gradient weights lie in (0, beta); not stated in the text read

    Pair it with score `reference_log_ratio`; DYPO mixes it with GRPO (`policy_weight`). Source: equations 14 to 16.
    """
    good = labels(batch) > 0.5
    together = batch.group[:, None] == batch.group[None, :]
    success, failure = (together & good[:, None] & ~good[None, :]).nonzero(as_tuple=True)
    return mean_over_prompts(logsigmoid(beta * (scores[success] - scores[failure])), success, batch)
