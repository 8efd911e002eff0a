"""Stage functions that read denoising steps: step values, branch groups, noise weights, Gaussian KL, drift.

Everything else of the objective runs on denoising steps as it is. `std (T)` and `h (T)` below are the deviation
and the length of a trained step, both 0 outside the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.groups import group_normalized
from mmrl.objective.numerics import log_ratio_to, safe_exp
from mmrl.record import Batch, Evaluation
from mmrl.stages import stage

FLOW = ("flow",)


@stage(
    "advantage",
    paper="DenseGRPO: from sparse to dense reward, arXiv 2601.20218",
    formula="A_t = normalised over the group at step t of gain_t = V(x_{t+1}) - V(x_t), V the reward of x's ODE image",
    needs=("step_rewards",),
    modalities=FLOW,
    required=("reward",),
    grain="action",
)
def dense_grpo(batch: Batch, *, eps: float = 1e-4, ddof: int = 0) -> Tensor:
    """Each step is credited with the reward it gains, compared with the group's gain at the same step. (B, T)

    `step_rewards[b, t]` is the reward of the image the ODE leads to from the state before action t; after the last
    trained step it is the reward itself, so the gains of a rollout add up to reward - step_rewards of its first
    trained step. One look-ahead image for each trained step is generated and scored. Defaults as Flow-GRPO's.
    """
    values, after = batch["step_rewards"].to(batch.reward), batch.reward.clone()
    advantage = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        at = batch.mask[:, t]
        gain = group_normalized(after - values[:, t], batch.group, at & batch.counted, eps, ddof)
        advantage[:, t] = torch.where(at & batch.counted, gain, 0.0)
        after = torch.where(at, values[:, t], after)
    return advantage


@stage(
    "advantage",
    paper="TempFlow-GRPO: when timing matters, arXiv 2508.04324",
    formula="A_i = (R_i - mean) / (std + eps) over the branches of one prompt, seed and step",
    needs=("branch",),
    modalities=FLOW,
    required=("reward",),
)
def tempflow_grpo(batch: Batch, *, eps: float = 1e-4, ddof: int = 0) -> Tensor:
    """Branches that leave one ODE trajectory at one step are compared with each other only. (B,)

    They differ in that step's noise alone, so their reward differences are its credit. Wants
    `policy.train_steps: {select: one}`. A step with a single scored branch gets 0.
    """
    pairs = torch.stack([batch.group, batch["branch"].to(batch.group)], 1)
    _, siblings = torch.unique(pairs, dim=0, return_inverse=True)
    return group_normalized(batch.reward, siblings, batch.counted, eps, ddof)


@stage(
    "credit",
    method="tempflow_grpo",
    paper="TempFlow-GRPO: when timing matters, arXiv 2508.04324",
    formula="A_t <- A_t std_t / mean_j(std_j)",
    needs=("step_std",),
    scope="batch",
    modalities=FLOW,
)
def noise_level_weights(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Steps weigh as the noise they inject: unweighted, the gradients of late, quiet steps dominate.

    The mean runs over the trained steps of the whole batch, each once. The weights depend on the sampler: for
    constant noise (`dance_sde`) they only follow the square root of the step length.
    """
    std = torch.where(batch.mask, batch["step_std"].to(advantage), 0.0)
    levels = std.amax(0)
    used = levels > 0
    mean = levels[used].mean() if used.any() else levels.new_ones(())
    return advantage * std / mean, batch.loss_mask


@stage(
    "credit",
    method="sage_grpo",
    paper="SAGE-GRPO: manifold-aware exploration, arXiv 2603.21872",
    formula="A_t <- A_t median_j(N_j) / N_t, N = |d mean / d v| / std",
    needs=("step_equalizer",),
    modalities=FLOW,
)
def sage_equalizer(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gives every step the same gradient norm in velocity; the factors are `sde.gradient_equalizer`."""
    return advantage * batch["step_equalizer"].to(advantage), batch.loss_mask


@stage(
    "credit",
    method="flow_grpo",
    paper="Flow-GRPO, arXiv 2505.05470, published code",
    formula="A <- clip(A, -limit, limit)",
    grain="row",
)
def clip_advantage(advantage: Tensor, batch: Batch, *, limit: float = 5.0) -> tuple[Tensor, Tensor]:
    """Bounds the advantage of an outlier. Returns (B, T) twice.

    limit  all published flow recipes use 5
    """
    return advantage.clamp(-limit, limit), batch.loss_mask


@stage(
    "credit",
    method="grpo_guard",
    paper="GRPO-Guard, arXiv 2510.22319",
    formula="A_t <- A_t / h_t",
    confidence="partly",
    needs=("step_sizes",),
    modalities=FLOW,
)
def inverse_step_size(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """GRPO-Guard's gradient reweighting: one public implementation has it, another leaves it out."""
    sizes = batch["step_sizes"].to(advantage)
    return torch.where(sizes > 0, advantage / sizes.clamp(min=1e-12), 0.0), batch.loss_mask


@stage(
    "ratio",
    paper="GRPO-Guard: regulated clipping, arXiv 2510.22319",
    formula="R_t = (lp_new - lp_old + b_t) std_t, b_t = mean((mu_new - mu_old)^2) / (2 std_t^2)",
    needs=("mean_shift", "step_std"),
    modalities=FLOW,
)
def grpo_guard(evaluation: Evaluation, batch: Batch) -> Tensor:
    """The log-ratio with its bias removed and its spread made equal for all steps. Returns (B, T).

    The plain ratio of a denoising step has a mean below 1, so positive samples are never clipped. Gradient flows
    through the log-prob and through b. Wants `policy.keep_means: true`, mean reduction and normalised log-probs.
    Source: the public implementations in verl-omni and Flow-Factory; the paper's own code was not read.
    """
    recentred = log_ratio_to(evaluation, batch) + evaluation["mean_shift"]
    return torch.where(batch.mask, recentred * batch["step_std"].to(recentred), 0.0)


@stage(
    "trust_region",
    paper="Flow-DPPO, arXiv 2606.11025",
    formula="rho A; no gradient where D > delta and (A > 0 and rho > 1, or A < 0 and rho < 1), D the exact step KL",
    needs=("mean_shift",),
    modalities=FLOW,
)
def flow_dppo(log_ratio: Tensor, evaluation: Evaluation, batch: Batch, *, delta: float = 1e-5) -> Tensor:
    """A step that has moved further than `delta` may come back but not move on. Returns (B, T).

    delta  KL to the rollout's step, mean((mu_new - mu_old)^2) / (2 std^2); larger allows longer steps

    Wants `policy.keep_means: true`. Source: verl-omni's documentation; the paper's own code was not read.
    """
    ratio = safe_exp(log_ratio)
    outwards = torch.where(batch.advantage > 0, ratio > 1, ratio < 1) & (batch.advantage != 0)
    blocked = outwards & (evaluation["mean_shift"].detach() > delta)
    objective = ratio * batch.advantage
    return torch.where(blocked, objective.detach(), objective)


@stage(
    "regularizer",
    method="flow_grpo",
    paper="Flow-GRPO, arXiv 2505.05470",
    formula="mean((mu_new - mu_ref)^2) / (2 std^2)",
    needs=("reference_kl",),
    modalities=FLOW,
)
def gaussian_kl(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Exact KL of each step to the reference model's step. Returns (B, T), aggregated like the objective.

    `policy.kl` chooses the scale: with "legacy_no_dt" a published coefficient keeps its meaning (times h).
    """
    return torch.where(batch.mask, evaluation["reference_kl"], 0.0)


@stage(
    "regularizer",
    method="sage_grpo",
    paper="SAGE-GRPO: manifold-aware exploration, arXiv 2603.21872",
    formula="lp_old - lp_new",
)
def old_policy_kl(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Sampled KL of the rollout policy to the new one. Returns (B, T).

    Zero in value on-policy, but with a gradient for each sample (zero in expectation): do not leave it out there.
    """
    return -log_ratio_to(evaluation, batch)
