"""Credit of denoising steps: weights by noise, by gradient norm, by step length.

All read what the sampler says of a step, 0 outside the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.record import Batch
from mmrl.stages import FLOW, stage


@stage(
    "credit",
    method="tempflow_grpo",
    paper="TempFlow-GRPO: when timing matters, arXiv 2508.04324",
    formula="A_t <- A_t std_t / mean_j(std_j)",
    confidence="verified",
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
    confidence="verified",
    needs=("step_equalizer",),
    modalities=FLOW,
)
def sage_equalizer(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gives every step the same gradient norm in velocity; the factors are `sde.gradient_equalizer`."""
    return advantage * batch["step_equalizer"].to(advantage), batch.loss_mask


@stage(
    "credit",
    method="grpo_guard",
    paper="GRPO-Guard, arXiv 2510.22319",
    formula="A_t <- A_t / h_t",
    confidence="verified",
    needs=("step_sizes",),
    modalities=FLOW,
)
def inverse_step_size(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """GRPO-Guard's gradient reweighting: the authors' code divides the loss of a step by its length.

    With 10 steps at shift 3 lengths grow from .04 to .2, so early, short steps weigh several times what they did.
    """
    sizes = batch["step_sizes"].to(advantage)
    return torch.where(sizes > 0, advantage / sizes.clamp(min=1e-12), 0.0), batch.loss_mask
