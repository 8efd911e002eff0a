"""Stage 7: at which granularity the new policy is compared with the one that sampled.

Every function returns the differentiable log-ratio `(B, T)`, 0 outside the mask; a ratio of a whole sequence or
segment stands on each of its actions. Trust regions exponentiate (clamped to +-20).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.errors import ConfigError
from mmrl.objective.groups import masked_mean
from mmrl.objective.numerics import (
    LOG_BOUND,
    at_least_float32,
    current_log_probs,
    log_ratio_to,
    position,
    segment_mean,
    segment_sum,
    straight_through,
)
from mmrl.objective.soft_tokens import soft_token_log_prob
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, LANGUAGE, Need, stage

SCHEDULES = ("constant", "linear", "cosine", "sine", "quadratic", "cubic")


@stage(
    "ratio",
    method="grpo",
    paper="DeepSeekMath (GRPO), arXiv 2402.03300",
    formula="R_it = lp_new_it - lp_old_it",
    confidence="verified",
)
def token(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Each action by itself: a token, or a denoising step. Returns (B, T)."""
    return log_ratio_to(evaluation, batch)


@stage(
    "ratio",
    method="gspo",
    paper="Group Sequence Policy Optimization (GSPO), arXiv 2507.18071",
    formula="log s_i = mean_t R_it on every action, gradient through the whole mean",
    confidence="verified",
    grain="row",
)
def sequence(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Length-normalised ratio of the whole sequence. Returns (B, T), constant along a row.

    Ratios live very near 1: use clip bounds of about 3e-4 and 4e-4, and `sequence_mean`. Advantages that
    differ inside a row want `gspo_token`. Source: TRL (importance level "sequence").
    """
    return masked_mean(log_ratio_to(evaluation, batch), batch.mask)[:, None] * batch.mask


@stage(
    "ratio",
    method="gspo",
    paper="Group Sequence Policy Optimization (GSPO-token), arXiv 2507.18071",
    formula="log s_it = sg(mean_t R_it) + lp_new_it - sg(lp_new_it)",
    confidence="verified",
)
def gspo_token(evaluation: Evaluation, batch: Batch) -> Tensor:
    """The sequence ratio in value, each action's own log-prob in gradient, so that advantages may differ by action.

    Returns (B, T). Equal to `sequence` in value and gradient while the advantage is constant inside a row.
    verl implements only this form, with the log clamped at 10.
    """
    return straight_through(sequence(evaluation, batch), current_log_probs(evaluation, batch))


@stage(
    "ratio",
    method="rloo",
    paper="importance sampling of whole sequences; TRL's RLOO and VESPO",
    formula="log W_i = sum_t R_it on every action, gradient through the whole sum",
    confidence="verified",
    grain="row",
)
def full_sequence(evaluation: Evaluation, batch: Batch) -> Tensor:
    """The ratio of the sequence's probabilities, not normalised by length. Returns (B, T), constant along a row."""
    return log_ratio_to(evaluation, batch).sum(1, keepdim=True) * batch.mask


@stage(
    "ratio",
    paper="CTPO: cumulative token ratio, arXiv 2605.07331",
    formula="log rho_it = sg(sum_{u <= t} R_iu) + lp_new_it - sg(lp_new_it)",
    confidence="verified",
)
def ctpo(evaluation: Evaluation, batch: Batch, *, mean: bool = False, bound: float = 10.0) -> Tensor:
    """The product of the ratios of the prefix in value, each action's own log-prob in gradient. Returns (B, T).

    mean   geometric mean over the prefix instead of the product (pair with trust region `ctpo`, power -0.5)
    bound  upper clamp of the log-ratio

    Pair it with trust region `ctpo`, whose bounds widen with the position. Source: horizon-llm/CTPO.
    """
    total = log_ratio_to(evaluation, batch).clamp(-LOG_BOUND, LOG_BOUND).cumsum(1)
    if mean:
        total = total / position(batch.mask).clamp(min=1)
    return straight_through(total.clamp(max=bound), current_log_probs(evaluation, batch)) * batch.mask


def annealed(start: float, end: float, progress: float, schedule: str = "linear") -> float:
    """A value between `start` (progress 0) and `end` (progress 1)."""
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    x = min(max(progress, 0.0), 1.0)
    share = {
        "constant": 0.0,
        "linear": x,
        "cosine": (1 - math.cos(math.pi * x)) / 2,
        "sine": math.sin(math.pi * x / 2),
        "quadratic": x**2,
        "cubic": x * x * (3 - 2 * x),
    }[schedule]
    return start + (end - start) * share


def log_power_mean(log_ratio: Tensor, mask: Tensor, power: float) -> Tensor:
    """(B,) log of `(mean_t r_t^p)^(1/p)` over the mask; the geometric mean for |p| < 1e-6; 0 for an empty row."""
    if abs(power) < 1e-6:
        return masked_mean(log_ratio, mask)
    count = mask.sum(1)
    empty = (count == 0)[:, None]
    scaled = (power * log_ratio).masked_fill(~mask & ~empty, -torch.inf)
    total = torch.logsumexp(scaled, 1) - count.clamp(min=1).to(log_ratio.dtype).log()
    return torch.where(empty[:, 0], torch.zeros_like(total), total / power)


@stage(
    "ratio",
    method="holderpo",
    paper="HolderPO: Holder mean of token ratios, arXiv 2605.12058",
    formula="M_p = (mean_t r_it^p)^(1/p), M_0 = exp(mean_t R_it); p falls from start to end",
    confidence="verified",
    grain="row",
)
def holder(
    evaluation: Evaluation,
    batch: Batch,
    *,
    start: float = 2.0,
    end: float = -2.0,
    over: int | None = None,
    schedule: str = "linear",
    token_clip: float | None = None,
) -> Tensor:
    """The power mean of the token ratios of a sequence, gradient through all of them. Returns (B, T).

    start, end  the power p: above 0 favours actions whose ratio is high, 0 is `sequence`, below 0 favours low ones.
                2 to -2 for mathematics, 1 to -1 for agents; the best constant p is 3 for sparse and -1 for dense
                rewards
    over        steps of the schedule; None: the whole run
    schedule    constant, linear, cosine, sine, quadratic or cubic
    token_clip  clamp every log-ratio to +-log(1 + token_clip) before the mean (the authors' `sequence_w_clip`)

    Clip with 0.2 on both sides whatever p. p = 1 unclipped is GRPO unclipped. Source: paper equations 1 to 3 and
    YihangChen9/HolderPO, train_zero_math_holder.py.
    """
    log_ratio = log_ratio_to(evaluation, batch)
    if token_clip is not None:
        edge = math.log1p(token_clip)
        log_ratio = log_ratio.clamp(-edge, edge)
    power = annealed(start, end, batch.step / max((over or batch.steps) - 1, 1), schedule)
    return log_power_mean(log_ratio, batch.mask, power)[:, None] * batch.mask


def segments(batch: Batch, separators: tuple[int, ...] = (), shortest: int = 1) -> Tensor:
    """(B, T) long segment of each action, -1 outside the mask.

    The column `segment` where the rollouts carry one, else cut behind the action ids in `separators`. Segments
    shorter than `shortest` actions join the one before.
    """
    if "segment" in batch:
        return batch["segment"]
    if not separators or batch.actions is None:
        raise ConfigError(
            "ratio 'segment' needs to know where segments end: give `separators` (token ids of . ? ! and newline) "
            "and the batch its `actions`, or a column `segment (B, T)`"
        )
    ends = torch.isin(batch.actions, torch.tensor(separators, device=batch.actions.device)) & batch.mask
    segment, size = torch.zeros_like(batch.actions[:, 0]), torch.zeros_like(batch.actions[:, 0])
    ids = torch.full_like(batch.actions, -1)
    for t in range(ids.shape[1]):
        inside = batch.mask[:, t]
        ids[:, t] = torch.where(inside, segment, -1)
        size = size + inside
        closes = inside & ends[:, t] & (size >= shortest)
        segment, size = segment + closes, torch.where(closes, 0, size)
    leftover = ((segment > 0) & (size > 0) & (size < shortest))[:, None] & (ids == segment[:, None])
    return ids - leftover.long()


@stage(
    "ratio",
    method="sspo",
    paper="SSPO: Subsentence-level Policy Optimization, arXiv 2511.04256",
    formula="log s_ik = mean over the segment k of R_it, on each of its actions",
    confidence="partly",
    needs=lambda *, separators=(), **_: {} if separators else columns("segment"),
)
def segment(
    evaluation: Evaluation,
    batch: Batch,
    *,
    separators: tuple[int, ...] = (),
    shortest: int = 2,
    normalize: bool = True,
    through: bool = True,
) -> Tensor:
    """GSPO inside each segment: sentence, list item, turn or phase. Returns (B, T).

    separators  action ids that end a segment: . ? ! newline for sentences, with , ; : for sub-sentences. Not read
                where the rollouts carry a `segment (B, T)` column
    shortest    segments with fewer actions join the one before
    normalize   divide by the segment's length; a digest of the paper prints the ratio without it
    through     gradient through the whole segment; False: straight through each action's own log-prob

    One segment per row is GSPO, one action per segment is GRPO. Source: abstracts of both versions.
    """
    log_ratio, ids = log_ratio_to(evaluation, batch), segments(batch, tuple(separators), shortest)
    reduce = segment_mean if normalize else segment_sum
    value = reduce(log_ratio, ids, batch.mask)
    return value if through else straight_through(value, current_log_probs(evaluation, batch)) * batch.mask


@stage(
    "ratio",
    paper="GRPO-Guard: regulated clipping, arXiv 2510.22319",
    formula="R_t = (lp_new - lp_old + b_t) std_t, b_t = mean((mu_new - mu_old)^2) / (2 std_t^2)",
    confidence="verified",
    needs=("mean_shift", "step_std"),
    modalities=FLOW,
)
def grpo_guard(evaluation: Evaluation, batch: Batch) -> Tensor:
    """The log-ratio with its bias removed and its spread made equal for all steps. Returns (B, T).

    The plain ratio of a denoising step has a mean below 1, so positive samples are never clipped. Gradient flows
    through the log-prob and through b. Wants `policy.keep_means: true`, mean reduction and normalised log-probs.
    Source: the authors' code, which weighs steps by credit `inverse_step_size` too; verl-omni agrees.
    """
    recentred = log_ratio_to(evaluation, batch) + evaluation["mean_shift"]
    return torch.where(batch.mask, recentred * batch["step_std"].to(recentred), 0.0)


@stage(
    "ratio",
    method="soft_grpo",
    paper="SofT-GRPO, arXiv 2511.06411",
    formula="lp - lp_old, lp = mean over likely ids of -u - exp(-u), u = clip(g - log p~, -1.5, 3), on soft tokens",
    confidence="verified",
    needs=lambda **_: {"kept_log_probs": Need("kept_log_probs", weights="current"), **columns("soft", "gumbels")},
    modalities=LANGUAGE,
)
def soft_token(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Soft tokens by the density of their Gumbel noise, the others by their probability. Returns (B, T).

    Reads `soft (B, T)`, 1 on soft tokens; `gumbels (B, T, k)`, the perturbed log-probs g of the kept ids at sampling;
    and of the evaluation `kept_log_probs (B, T, k)`, the current log-probs of these ids, with gradient.
    `old_log_probs` on soft tokens is `soft_tokens.soft_token_log_prob` at sampling. For your own
    loop, through `compute`: in a run `policy.likelihood: soft_tokens` gives the density as the log-prob, and `token` is
    this ratio.
    Source: zz1358m/SofT-GRPO-master, torch_functional.py.
    """
    density = soft_token_log_prob(at_least_float32(evaluation["kept_log_probs"]), at_least_float32(batch["gumbels"]))
    soft = batch.mask & (batch["soft"] != 0)
    return torch.where(soft, density - at_least_float32(batch.old_log_probs), log_ratio_to(evaluation, batch))
