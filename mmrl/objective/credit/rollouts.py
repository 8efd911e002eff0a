"""Credit of whole rollouts: factors on an advantage that any baseline has made.

Each multiplies, bounds or silences rows and leaves the denominator alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.groups import group_count, group_mean, group_std, masked_mean
from mmrl.objective.numerics import row_uniform
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


def component(batch: Batch, name: str, asked_by: str) -> Tensor:
    """(B,) a reward component by name, or the one part of that name of a reward that has parts; ConfigError when no
    reward has it, or several do."""
    if name in batch.components:
        return batch.components[name]
    parts = [known for known in batch.components if known.endswith(f"/{name}")]
    if len(parts) > 1:
        raise ConfigError(f"{asked_by}: reward component {name!r} may be {' or '.join(parts)}; say which")
    if not parts:
        raise ConfigError(f"{asked_by}: {unknown('reward component', name, batch.components)}")
    return batch.components[parts[0]]


@stage(
    "credit",
    paper="ACE: Asymmetric Confidence-aware Error penalty, arXiv 2602.21420",
    formula="A_i (1 + alpha softplus(c_i)) where A_i < 0; c_i = mean_t (lp_old - lp_ref)",
    confidence="partly",
    needs=("ref_log_probs",),
    grain="row",
)
def ace(
    advantage: Tensor, batch: Batch, *, alpha: float = 1.0, gate: str = "softplus", length_norm: bool = True
) -> tuple[Tensor, Tensor]:
    """A wrong rollout that became likelier than under the reference is punished more. (B, T)

    alpha        how much; at confidence 0 softplus already multiplies by 1 + .69 alpha
    gate         softplus or relu (secondary sources disagree)
    length_norm  mean of the log-ratio, so that alpha is free of length; False is the paper's sum

    The log-ratio is clamped to [-10, 10]; advantages of 0 or more stay, and nothing is centred again.
    Source: abstract and secondary summaries; alpha is ours.
    """
    gates = {"softplus": softplus, "relu": torch.relu}
    if gate not in gates:
        raise ConfigError(f"ace: {unknown('gate', gate, gates)}")
    drift = (batch.old_log_probs - batch["ref_log_probs"]) * batch.mask
    drift = masked_mean(drift, batch.mask) if length_norm else drift.sum(1)
    factor = 1 + alpha * gates[gate](drift.clamp(-10, 10))
    return torch.where(advantage < 0, advantage * factor[:, None].to(advantage.dtype), advantage), batch.loss_mask


@stage(
    "credit",
    paper="XRPO, arXiv 2510.06672",
    formula="A_i + min(max(lambda (1 - eta_i), 0), kappa A_i) for right rollouts with A_i > 0; "
    "eta_i = exp(s_i - mean_j s_j), s_i = mean_t lp_old",
    confidence="partly",
    needs=("success",),
    grain="row",
)
def xrpo(advantage: Tensor, batch: Batch, *, strength: float = 1.0, cap: float = 0.5) -> tuple[Tensor, Tensor]:
    """Novelty sharpening: right rollouts less likely than their group's average earn a bounded bonus. (B, T)

    strength  lambda; larger rewards novelty more
    cap       kappa: the bonus is at most this share of the advantage

    Source: abstract and a third-party implementation; defaults ours. The rollout allocator is
    group function `xrpo_allocator`.
    """
    where = scored(batch)
    likelihood = masked_mean(batch.old_log_probs, batch.mask)
    novelty = 1 - (likelihood - group_mean(likelihood, batch.group, where)).exp()
    bonus = torch.minimum((strength * novelty).clamp(min=0)[:, None], cap * advantage)
    right = (successes(batch, "xrpo") & where)[:, None] & (advantage > 0)
    return torch.where(right, advantage + bonus, advantage), batch.loss_mask


@stage(
    "credit",
    "q_hawkeye_uncertainty",
    paper="Q-Hawkeye: Reliable Visual Policy Optimization for Image Quality Assessment, arXiv 2601.22920",
    formula="A_i exp(-alpha u), u = clip(var(scores of the group) / (.25 (max - min)^2), 0, 1)",
    confidence="verified",
    method="q_hawkeye",
    modalities=LANGUAGE,
    grain="row",
)
def q_hawkeye_uncertainty(
    advantage: Tensor,
    batch: Batch,
    *,
    alpha: float = 0.2,
    low: float = 1.0,
    high: float = 5.0,
    scores: str = "predicted_score",
) -> tuple[Tensor, Tensor]:
    """Prompts on whose score the rollouts disagree weigh less. (B, T)

    alpha      how much less; a group that spreads over the whole scale keeps exp(-alpha)
    low, high  ends of the score scale; predictions are clipped to it
    scores     reward component (weight 0) with each rollout's parsed prediction, NaN where nothing parsed

    Population variance of the parsed predictions; fewer than two give a factor of 1. Source: the authors' code.
    """
    predictions = component(batch, scores, "q_hawkeye_uncertainty").clamp(low, high)
    variance = group_std(predictions, batch.group, batch.counted, ddof=0) ** 2
    uncertainty = (variance / (0.25 * (high - low) ** 2)).clamp(0, 1)
    return advantage * (-alpha * uncertainty).exp()[:, None].to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    paper="DR-IRL: dynamic reward scaling (GRPO-S), arXiv 2503.18991",
    formula="A_i aD_i aM_j; aD = sigmoid(delta_i)/sigmoid(mean_j delta), aM = sigmoid(mean kept gap) / "
    "sigmoid(mean gap), kept: (gap - mean gap)^2 <= tau",
    confidence="partly",
    scope="batch",
    grain="row",
)
def dr_irl_grpo_s(
    advantage: Tensor, batch: Batch, *, hardness: str = "hardness", gap: str = "gap", tau: float | None = None
) -> tuple[Tensor, Tensor]:
    """Rollouts of hard data and of categories with a large reward gap weigh more. (B, T)

    hardness  component delta = 1 - similarity of the output to the demonstration; NaN (no demonstration): factor 1
    gap       component R(demonstration) - R(output)
    tau       gaps further from their category's mean (squared) are left out; None: 4 times their variance (ours)

    Categories are the `task` column. Applied to the advantage: a factor on the reward would cancel in a
    standardised group. Source: a detailed third-party paper note with the equations; training category reward
    models is out of scope.
    """
    delta, distance = component(batch, hardness, "dr_irl_grpo_s"), component(batch, gap, "dr_irl_grpo_s")
    data = torch.sigmoid(delta) / torch.sigmoid(group_mean(delta, batch.task, batch.counted))
    mean = group_mean(distance, batch.task, batch.counted)
    limit = 4 * group_std(distance, batch.task, batch.counted, ddof=0) ** 2 if tau is None else tau
    kept = batch.counted.bool() & ((distance - mean) ** 2 <= limit)
    model = torch.sigmoid(group_mean(distance, batch.task, kept)) / torch.sigmoid(mean)
    model = torch.where(group_count(batch.task, kept) > 0, model, torch.zeros_like(model))
    factor = torch.where(torch.isnan(delta) | torch.isnan(distance), torch.ones_like(data), data * model)
    return advantage * factor[:, None].to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    "microcoder_truncation",
    paper="MicroCoder-GRPO, arXiv 2603.07777",
    formula="A_i = 0 if truncated, right, not repeating, and u < rho",
    confidence="partly",
    method="microcoder_grpo",
    needs=("success", "actions"),
    modalities=LANGUAGE,
    grain="row",
)
def microcoder_truncation(
    advantage: Tensor, batch: Batch, *, share: float = 0.3, repeat: int = 128
) -> tuple[Tensor, Tensor]:
    """A random share of the truncated answers that are right and not repeating themselves is silenced. (B, T)

    share   of those answers; 1 masks all of them, which collapses in the paper
    repeat  an answer whose last `repeat` tokens equal the `repeat` before them is a loop, and stays

    Truncated wrong answers stay negatives. Source: the authors' README and notes.
    """
    if batch.actions is None:
        raise ConfigError("microcoder_truncation compares token ids, and this batch has no actions")
    drawn = row_uniform(batch, "microcoder truncation")[:, 0] < share
    masked = batch.truncated & successes(batch, "microcoder_truncation") & drawn
    for row in masked.nonzero().squeeze(1).tolist():
        ids = batch.actions[row][batch.mask[row]]
        if len(ids) >= 2 * repeat and torch.equal(ids[-repeat:], ids[-2 * repeat : -repeat]):
            masked[row] = False
    return advantage.masked_fill(masked[:, None], 0.0), batch.loss_mask


@stage(
    "credit",
    paper="PRS + VSPO: value-based sampling policy optimization, arXiv 2512.07478",
    formula="A min(c, n^-1/2) or A / n, n = groups of the same prompt in the batch",
    confidence="reconstructed",
    method="prs_vspo",
    scope="batch",
    grain="row",
)
def vspo_smoothing(advantage: Tensor, batch: Batch, *, smooth: str = "sqrt", cap: float = 1.0) -> tuple[Tensor, Tensor]:
    """A prompt that was sampled n times in place of worthless ones does not weigh n times. (B, T)

    smooth  sqrt (n^-1/2) or copies (1/n)
    cap     largest factor

    Reconstructed from the abstract; the value-based resampling is a prompt sampler.
    """
    if smooth not in ("sqrt", "copies"):
        raise ConfigError(f"vspo_smoothing: {unknown('smooth', smooth, ('sqrt', 'copies'))}")
    pairs = torch.unique(torch.stack([batch.prompt, batch.group], 1), dim=0)
    prompts, copies = torch.unique(pairs[:, 0], return_counts=True)
    n = copies[torch.searchsorted(prompts, batch.prompt)].to(advantage.dtype)
    factor = (n**-0.5 if smooth == "sqrt" else 1 / n).clamp(max=cap)
    return advantage * factor[:, None], batch.loss_mask


@stage(
    "credit",
    method="flow_grpo",
    paper="Flow-GRPO, arXiv 2505.05470, published code",
    formula="A <- clip(A, -limit, limit)",
    confidence="verified",
    grain="row",
)
def clip_advantage(advantage: Tensor, batch: Batch, *, limit: float = 5.0) -> tuple[Tensor, Tensor]:
    """Bounds the advantage of an outlier. Returns (B, T) twice.

    limit  all published flow recipes use 5
    """
    return advantage.clamp(-limit, limit), batch.loss_mask
