"""Credit from the probability of the sampled token: how likely it was, and how it moves while training."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import later_sum, log_ratio_to, safe_exp
from mmrl.record import Batch, Evaluation
from mmrl.stages import stage


@stage(
    "credit",
    paper="On the Direction of RLVR Updates, arXiv 2603.22117",
    formula="A_it (1 + alpha (1 - p_old_t))",
    confidence="verified",
)
def delta_log_p(advantage: Tensor, batch: Batch, *, alpha: float = 0.2) -> tuple[Tensor, Tensor]:
    """Unlikely tokens weigh up to 1 + alpha, whatever the sign; nothing is renormalised. (B, T)

    alpha  .2 for 7B, .1 for 8B models in the paper

    Source: the authors' code (Hesse73/RLVR-Directions). Their test-time extrapolation is a sampler.
    """
    return advantage * (1 + alpha * (1 - batch.old_log_probs.exp())).to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    paper="FIPO: Future-KL Influenced Policy Optimization, arXiv 2603.19835",
    formula="A_it clip(exp(F_t), lo, 1 + eps), F_t = sum_k>=t 2^(-(k-t)/tau) (lp_k - lp_old_k)",
    confidence="verified",
    idle="every weight is 1",
    phase="update",
)
def fipo(
    advantage: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    half_life: float = 32.0,
    eps: float = 0.2,
    high_only: bool = True,
    drop_above: float | None = None,
    safety: float | None = 4.0,
) -> tuple[Tensor, Tensor]:
    """A token weighs more when the policy has been moving towards what follows it. (B, T)

    half_life   tokens after which a shift counts half; larger looks further ahead
    eps         the weight stays in [1 - eps, 1 + eps]
    high_only   the weight never falls below 1
    drop_above  shifts of tokens whose ratio exceeds this do not count (10 in the 32B recipe, with `dual: 10`
                in the clip); None counts all
    safety      where A < 0 and the ratio exceeds this, the weight is clipped to [.8, 1]; None: never

    The identity on the first update of a batch: it acts with several updates per batch.
    Source: ms-swift's port of the official code. A circulating summary with `A + lambda sum` is wrong.
    """
    shift = log_ratio_to(evaluation, batch)
    ratio = safe_exp(shift)
    if drop_above is not None:
        shift = shift.masked_fill(ratio > drop_above, 0.0)
    future = later_sum(shift, 2 ** (-1 / half_life))
    weight = safe_exp(future).clamp(1.0 if high_only else 1 - eps, 1 + eps)
    if safety is not None:
        weight = torch.where((advantage < 0) & (ratio > safety), weight.clamp(0.8, 1.0), weight)
    return advantage * weight.to(advantage.dtype), batch.loss_mask


def extrapolated_log_probs(tuned: Tensor, base: Tensor, gamma: float = 0.1) -> Tensor:
    """(..., V) log-probs of `softmax((1 + gamma) lp_tuned - gamma lp_base)`: further along the direction of training.

    A test-time sampler draws from it where the tuned model disagrees with the base model's token (a log-ratio
    below about -.2 to -.5), and keeps the base model's token elsewhere. gamma .05 to .1 for 14B to 32B models.
    Source: Hesse73/RLVR-Directions.
    """
    return torch.log_softmax((1 + gamma) * tuned - gamma * base, dim=-1)
