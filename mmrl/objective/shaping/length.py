"""Length shaping: what a long or a short answer costs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.credit.tokens import count_of
from mmrl.objective.groups import group_centred, group_count, group_mean, group_std, representatives
from mmrl.record import Batch, task_number
from mmrl.stages import LANGUAGE, stage


@stage(
    "shaping",
    paper="DAPO, arXiv 2503.14476",
    formula="r + 0 up to L_max - L_buffer, falling linearly to r - penalty at L_max, r - penalty beyond",
    confidence="verified",
    method="dapo",
    modalities=LANGUAGE,
)
def soft_overlong(
    batch: Batch, *, max_length: int | None = None, buffer_share: float = 0.2, penalty: float = 1.0
) -> Tensor:
    """Reward minus a penalty that grows over the last stretch before the length limit. (B,)

    max_length    of a response; None: the limit the policy samples with. In your own loop a batch without
                  `max_length` has no limit: nothing is overlong, and a warning says so
    buffer_share  of `max_length` over which the penalty grows: .2 is the paper's 4,096 of 20,480
    penalty       at the limit and beyond, in reward units

    Source: arXiv 2503.14476, equation 13.
    """
    limit = max_length or batch.max_length
    if not 0 < buffer_share <= 1:
        raise ConfigError(f"soft_overlong: buffer_share={buffer_share}: expected a share above 0 and up to 1")
    if not limit:
        warnings.warn("soft_overlong: the batch has no max_length, so no answer counts as overlong", stacklevel=2)
        return batch.reward
    buffer = buffer_share * limit
    overlong = (batch.length.to(batch.reward.dtype) - (limit - buffer)) / buffer
    return batch.reward - penalty * overlong.clamp(0, 1)


@stage(
    "shaping",
    paper="GRPO-lambda: stable RL for efficient reasoning, arXiv 2505.18086",
    formula="right rollouts of the top lambda of prompts by accuracy: r - alpha sigmoid((L - mean L)/std L), over the "
    "right ones",
    confidence="partly",
    scope="batch",
    needs=("success",),
    modalities=LANGUAGE,
)
def grpo_lambda(batch: Batch, *, share: float = 0.2, alpha: float = 0.2, threshold: float | None = None) -> Tensor:
    """Shorter right answers earn more, but only for prompts that are mostly right already. (B,)

    share      of the batch's prompts, best accuracy first, counted up to at least one; ties by group id
    alpha      largest penalty; .6 in a public re-implementation, .2 is our cautious default
    threshold  choose prompts by accuracy at or above it instead (ours)

    Fewer than two right answers, or equal lengths: the same penalty for all, which cancels. Source: a third-party
    write-up with the paper's equations. Not the GRPO-lambda of arXiv 2510.00194 (lambda-returns).
    """
    where = scored(batch)
    right = successes(batch, "grpo_lambda") & where
    accuracy = group_mean(right.to(batch.reward.dtype), batch.group, where)
    if threshold is None:
        rows = representatives(batch.group)
        rows = rows[group_count(batch.group, where)[rows] > 0]
        order = torch.argsort(-accuracy[rows], stable=True)
        chosen = torch.isin(batch.group, batch.group[rows[order[: count_of(share, len(rows)) or 1]]])
    else:
        chosen = accuracy >= threshold
    length = batch.length.to(batch.reward.dtype)
    spread = group_std(length, batch.group, right, ddof=0)
    z = group_centred(length, batch.group, right) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return torch.where(chosen & right, batch.reward - alpha * torch.sigmoid(z), batch.reward)


def length_budget(step: int, *, first: float = 256.0, gamma: float = 0.835, every: int = 100, decay: str) -> float:
    """Tokens a response should use at this step: every `every` steps the share `gamma` is kept (exponential), or
    1 - gamma of `first` is taken away (linear); at least 1."""
    reductions = step // every
    kept = gamma**reductions if decay == "exponential" else 1 - (1 - gamma) * reductions
    return max(1.0, first * kept)


def length_score(length: Tensor, budget: float, form: str = "triangle") -> Tensor:
    """(B,) 1 at the budget, 0 from twice the budget on. `triangle` rises to it from 0; `flat` is 1 below it."""
    used = length / budget
    below = used if form == "triangle" else torch.ones_like(used)
    return torch.where(used <= 1, below, (2 - used).clamp(min=0))


@stage(
    "shaping",
    paper="Train Long, Think Short, arXiv 2508.08940",
    formula="r + w score(L / B_t), B_t = max(1, B_0 gamma^floor(t/K)); triangle: L/B up to B, 2 - L/B up to 2B",
    confidence="verified",
    modalities=LANGUAGE,
)
def train_long_think_short(
    batch: Batch,
    *,
    weight: float = 0.3,
    first: float = 256.0,
    gamma: float = 0.835,
    every: int = 100,
    form: str = "triangle",
    decay: str = "exponential",
) -> Tensor:
    """A reward for using a token budget that shrinks over the run. (B,)

    weight  .3 with accuracy at .6 (accuracy first), .6 with accuracy at .3 (length first)
    first   budget in tokens at the start
    gamma   share of it that a reduction keeps; the paper's 256 reach 87 after 6 reductions
    every   steps between two reductions
    form    triangle, or flat, which does not punish short right answers: better for perception tasks
    decay   exponential or linear

    The paper also writes the budget (`length_budget`) into the prompt. Source: full text.
    """
    for name, value, known in (("form", form, ("triangle", "flat")), ("decay", decay, ("exponential", "linear"))):
        if value not in known:
            raise ConfigError(f"train_long_think_short: {unknown(name, value, known)}")
    budget = length_budget(batch.step, first=first, gamma=gamma, every=every, decay=decay)
    return batch.reward + weight * length_score(batch.length.to(batch.reward.dtype), budget, form)


@stage(
    "shaping",
    paper="OpenVLThinkerV2 (G2RPO), arXiv 2604.08539",
    formula="r + w trapezoid(L): 1 in the task's [lo, hi], falling to 0 at 0 and at 2 hi",
    method="openvlthinkerv2_g2rpo",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
def task_length(batch: Batch, *, bands: Mapping[str, tuple[float, float]] | None = None, weight: float = 0.1) -> Tensor:
    """Each task has a band of lengths that earns a bonus: long for reasoning, short for perception. (B,)

    bands   {task: [lo, hi]} in tokens; tasks without a band earn nothing
    weight  of the bonus, in reward units

    Reconstructed: the paper gives its bands in a figure.
    """
    length, bonus = batch.length.to(batch.reward.dtype), torch.zeros_like(batch.reward)
    for task, (low, high) in (bands or {}).items():
        if not 0 <= low <= high:
            raise ConfigError(f"task_length: band {task}: [{low}, {high}]: expected 0 <= low <= high")
        rising = length / low if low else torch.ones_like(length)
        score = torch.minimum(rising, 2 - length / high).clamp(0, 1)
        bonus = torch.where(batch.task == task_number(task), score, bonus)
    return batch.reward + weight * bonus
