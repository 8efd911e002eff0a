"""How far velocities have moved from those of other weights: the KL of forward-process methods, up to a factor."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl.objective.matching_objectives.forward_process import clipped_share
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, Need, stage


def _needs(*, to: str, **_) -> dict[str, Need]:
    return {"gap": Need("velocity_gap", weights="current", options=(("to", to),))}


@stage(
    "regularizer",
    method="diffusion_nft",
    paper="DiffusionNFT, arXiv 2509.16117; AWM, arXiv 2509.25050; CRD, arXiv 2603.14128",
    formula="mean((v_theta - v_other)^2) at the draws, times least + R (1 - least), R = clip(A / 2 A_max + 1/2, 0, 1)",
    needs=_needs,
    modalities=FLOW,
    confidence="verified",
)
def velocity_kl(
    evaluation: Evaluation, batch: Batch, *, to: Literal["reference", "anchor"] = "reference", least: float = 1.0,
    advantage_max: float = 5.0,
) -> Tensor:  # fmt: skip
    """Squared distance to the velocity of other weights at the draws. Returns (B, J).

    to             the weights training began with, guided by policy.reference_guidance; or `policy.anchor`
    least          1 for all rollouts alike; below it, the share of the penalty that the worst reward has (CRD: the
                   better an output, the nearer the policy stays)
    advantage_max  of that reward

    Source: NVlabs/DiffusionNFT, train_nft_sd3.py, line 966; Flow-Factory, trainers/rl/crd.py, `_kl_loss` (read).
    """
    reward = (clipped_share(batch.advantage, advantage_max) + 1) / 2
    return evaluation["gap"] * (least + reward * (1 - least))
