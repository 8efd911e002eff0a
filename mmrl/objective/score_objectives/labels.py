"""Rewards as labels, advantages as targets: PACS, REAL, DisCO, Reg-GRPO, GRAO.

Each function receives the scores of the trained rows of one optimizer step, over all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from mmrl.errors import ConfigError
from mmrl.objective.groups import (
    degenerate,
    group_count,
    group_mean,
    group_normalized,
    group_std,
    group_sum,
    representatives,
)
from mmrl.objective.numerics import labels, outcome, row_advantage
from mmrl.record import Batch
from mmrl.stages import stage


def group_logsumexp(values: Tensor, group: Tensor, where: Tensor) -> Tensor:
    """(B,) differentiable logsumexp over the rows of the group in `where`; -inf where there are none."""
    _, inverse = torch.unique(group, return_inverse=True)
    together = (inverse[:, None] == inverse[None, :]) & where[None, :]
    grid = values[None, :].expand(together.shape).masked_fill(~together, -torch.inf)
    empty = ~together.any(1)
    total = torch.logsumexp(grid.masked_fill(empty[:, None], 0.0), 1)
    return torch.where(empty, torch.full_like(total, -torch.inf), total)


def per_prompt(values: Tensor, group: Tensor) -> Tensor:
    """Sum over groups of a value that stands on every row of its group."""
    return values[representatives(group)].sum()


def prompts(batch: Batch) -> int:
    return max(len(torch.unique(batch.group)), 1)


@stage(
    "score_objective",
    paper="PACS: implicit actor-critic via supervised learning, arXiv 2509.02522",
    formula="-mean BCE(sigmoid(z_i), y_i), z_i = q_i - mean of the other q of the group, q = beta s",
    confidence="verified",
)
def pacs(
    scores: Tensor, batch: Batch, *, beta: float = 1.0, baseline: str = "leave_one_out", balance: bool = False
) -> Tensor:
    """Predict the verifier's label from a leave-one-out score. Returns a scalar.

    beta      scale of the score: larger saturates sooner
    baseline  "leave_one_out", "standardised" in the group, or "none"; gradient flows through all of it
    balance   weigh each class of a prompt by n / (2 n_class)

    Pair it with score `log_ratio`. Needs binary rewards or `success`. Source: ritzz-ai/PACS, pacs_core_algos.py.
    """
    q, target = beta * scores, labels(batch).to(scores)
    if baseline == "leave_one_out":
        count = group_count(batch.group).to(q)
        logits = (q - group_mean(q, batch.group)) * count / (count - 1).clamp(min=1)
    elif baseline == "standardised":
        logits = group_normalized(q, batch.group)
    elif baseline == "none":
        logits = q
    else:
        raise ConfigError(f"pacs: baseline is {baseline!r}; expected leave_one_out, standardised or none")
    weight = torch.ones_like(q)
    if balance:
        size, good = group_count(batch.group).to(q), group_sum(target, batch.group)
        weight = size / (2 * torch.where(target > 0.5, good, size - good).clamp(min=1))
    return -binary_cross_entropy_with_logits(logits, target, weight)


@stage(
    "score_objective",
    paper="REAL: rewards as labels, arXiv 2602.05630",
    formula="-mean over prompts of log(1 + sum_pos exp(-s/tau)) + log(1 + sum_neg exp(s/tau))",
    confidence="verified",
)
def real(scores: Tensor, batch: Batch, *, tau: float = 0.5, skip_single_class: bool = True) -> Tensor:
    """Classify rollouts against an anchor logit of 0; gradient weights are bounded by 1 / tau. Returns a scalar.

    tau                smaller is sharper
    skip_single_class  prompts whose rollouts are all on one side add 0 but stay in the mean, as ms-swift does; the
                       paper's formula trains them

    Positive: reward above the group mean, or equal to the largest label 1. Pair it with score `log_ratio`, reduce
    "mean". Source: ms-swift docs and grpo_trainer.py.
    """
    reward = outcome(batch).to(scores)
    mean = group_mean(reward, batch.group)
    flat = degenerate(reward, batch.group)
    good = torch.where(flat, reward > 0.5, reward > mean)
    logits = torch.where(good, -scores, scores) / tau
    total = torch.zeros_like(scores)
    for side in (good, ~good):
        inside = group_logsumexp(logits, batch.group, side)
        total = total + softplus(inside.clamp(min=-1e4)) * torch.isfinite(inside)
    if skip_single_class:
        total = total * ~flat
    return -per_prompt(total, batch.group) / prompts(batch)


@stage(
    "score_objective",
    paper="DisCO: discriminative constrained optimisation, arXiv 2505.12366",
    formula="mean_pos s - tau log mean_neg exp(s/tau), minus (beta/2) max(KL - delta, 0)^2",
    confidence="verified",
    idle="its hinge on the KL is 0",
)
def disco(scores: Tensor, batch: Batch, *, tau: float | None = 10.0, delta: float = 1e-4, beta: float = 1e3) -> Tensor:
    """Raise positive scores above a soft maximum of the negatives, under a hard KL constraint. Returns a scalar.

    tau    10 for log-prob scores, 1 for ratios; None: the plain mean of the negatives (DisCO-b)
    delta  KL(old || new) allowed, a mean over all actions
    beta   price of exceeding it, squared; 0: no constraint

    Pair it with score `disco`. Needs binary rewards or `success`. Prompts without both classes add 0 but stay
    in the mean. Source: Optimization-AI/DisCO, core_algos.py.
    """
    if scores.dim() != 2 or scores.shape[1] != 3:
        raise ConfigError(f"score_objective 'disco' wants score 'disco' with (B, 3) columns, got {tuple(scores.shape)}")
    s, drift, length = scores.unbind(1)
    good = labels(batch) > 0.5
    both = (group_count(batch.group, good) > 0) & (group_count(batch.group, ~good) > 0)
    if tau is None:
        against = group_mean(s, batch.group, ~good)
    else:
        count = group_count(batch.group, ~good).clamp(min=1).to(s)
        against = tau * (group_logsumexp(s / tau, batch.group, ~good).nan_to_num(neginf=0.0) - count.log())
    margin = torch.where(both, group_mean(s, batch.group, good) - against, torch.zeros_like(s))
    excess = (drift.sum() / length.sum().clamp(min=1) - delta).clamp(min=0)
    return per_prompt(margin, batch.group) / prompts(batch) - beta / 2 * excess**2


@stage(
    "score_objective",
    method="deepvideo_r1",
    paper="DeepVideo-R1 (Reg-GRPO), arXiv 2506.07464",
    formula="-mean_i (A_i - (rho_i - mean_g rho) / (std_g rho + eps))^2",
    confidence="partly",
    idle="every rho is 0, so nothing is predicted",
)
def reg_grpo(
    scores: Tensor, batch: Batch, *, eps: float = 1e-2, centred_only: bool = False, beta: float = 1.0
) -> Tensor:
    """Regress the group-standardised log-ratio onto the advantage: no clip, no min. Returns a scalar.

    eps           right after sampling every log-ratio is 0, so eps is the step size there; 1e-4 to 1e-2
    centred_only  regress onto `beta (rho - mean)` instead, which has no such singularity
    beta          of that form

    Groups of equal rewards have nothing to regress onto and add 0. Pair it with score `log_ratio` and advantage
    `grpo`; add regularizer `kl`. The augmentation half of the paper is a matter of data. Source: a note with the
    equations, agreeing with the paper's text.
    """
    target = row_advantage(batch).to(scores)
    if centred_only:
        predicted = beta * (scores - group_mean(scores, batch.group))
    else:
        predicted = group_normalized(scores, batch.group, eps=eps)
    alive = ~degenerate(target, batch.group)
    return -(alive * (target - predicted) ** 2).mean()


@stage(
    "score_objective",
    paper="GRAO: group relative alignment optimisation, arXiv 2508.07750",
    formula="mean_i [A_i E_i + beta A_y I + contrast A_i (E_i - I)], A over own samples and the reference answer y",
    confidence="verified",
    needs=("expert",),
)
def grao(scores: Tensor, batch: Batch, *, beta: float = 0.5, contrast: float = 0.6) -> Tensor:
    """Explore (own samples), imitate (a reference answer) and align (own against reference) in one loss. A scalar.

    beta      weight of the imitation
    contrast  weight of the alignment

    The reference answer is a member of the group marked in `expert (B,)`, scored by the same reward and standing
    in the group's statistics (population deviation). Groups without one train on the exploration term. Pair it
    with score `log_prob`, reduce "mean". Source: the paper's equations 3 and 4.
    """
    reward, expert = outcome(batch).to(scores), batch["expert"].bool()
    std = group_std(reward, batch.group, ddof=0)
    advantage = torch.where(
        std > 1e-8, (reward - group_mean(reward, batch.group)) / std.clamp(min=1e-8), torch.zeros_like(std)
    )
    own = group_count(batch.group, ~expert).clamp(min=1).to(scores)
    reference = group_mean(scores, batch.group, expert)
    has_reference = group_count(batch.group, expert) > 0
    term = advantage * scores + contrast * has_reference * advantage * (scores - reference)
    explore = torch.where(expert, torch.zeros_like(term), term / own)
    imitate = torch.where(expert, beta * advantage * scores, torch.zeros_like(scores))
    return (explore + imitate).sum() / prompts(batch)
