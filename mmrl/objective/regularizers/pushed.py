"""Euphonium's distillation: what rollouts were pushed to becomes where the policy goes by itself."""

from __future__ import annotations

from torch import Tensor

from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, Need, stage

PUSHED = Need("mean_shift", weights="current", options=(("to", "pushed"),))


@stage(
    "regularizer",
    method="euphonium",
    paper="Euphonium: process-reward guided dynamics for flow matching, arXiv 2602.04928",
    formula="KL(pushed step || policy's step) = mean((mu_theta - mu_old - c grad P)^2) / (2 std^2)",
    needs=lambda **_: {"gap": PUSHED},
    modalities=FLOW,
    confidence="reconstructed",
)
def push_distillation(evaluation: Evaluation, batch: Batch) -> Tensor:
    """How far the policy's step is from the one that the rollout took under the push. Returns (B, T).

    Wants `policy.push.keep: true`. Steps that were not pushed hold the policy where it was when it sampled. The authors
    say that guidance is distilled into the policy; their loss was not read. Ours is the exact KL of the two Gaussian
    steps, which is the squared distance of velocities, v_theta to v_old - (c / h) grad P, up to a factor of the step.
    """
    return evaluation["gap"]
