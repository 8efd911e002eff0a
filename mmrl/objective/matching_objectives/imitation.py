"""The supervised loss of flows: outputs are learned as pre-training learns them, each as much as it weighs."""

from __future__ import annotations

from torch import Tensor

from mmrl.objective.matching_objectives.forward_process import Weighting, weighted_loss
from mmrl.objective.numerics import at_least_float32
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, stage


@stage(
    "matching_objective",
    method="pa_rl",
    paper="PA-RL: policy agnostic RL, arXiv 2412.06685",
    formula="-A w(l, t), l = mean((v_theta - v)^2) of the clean output",
    needs=("matching_loss", "draw_times"),
    modalities=FLOW,
    confidence="partly",
)
def imitation(evaluation: Evaluation, batch: Batch, *, weighting: Weighting = "uniform", power: float = 0.25) -> Tensor:
    """The pre-training loss of each output, weighed by its advantage. Returns (B, J).

    weighting, power  of the loss, as in `awm`; uniform is that of pre-training

    With advantage `pa_rl`, which is never negative: a negative one would raise the loss without bound. Source: the
    paper's supervised loss of diffusion policies.
    """
    t = at_least_float32(batch["draw_times"])
    return -batch.advantage * weighted_loss(at_least_float32(evaluation["matching_loss"]), t, weighting, power)
