"""Objectives of the forward process: losses of a clean output under noise in place of log-probs. AWM, DiffusionNFT.

Columns are (B, J), J draws of time and noise for each rollout (`policy.likelihood: matching`). Rows whose advantage is
0 still train under `diffusion_nft`, where they hold the policy near the old one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.objective.numerics import at_least_float32
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, NEEDS, Need, stage

Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]


def weighted_loss(loss: Tensor, t: Tensor, weighting: Weighting, power: float = 0.25) -> Tensor:
    """w(l, t), shaped like both: what AWM takes a matching loss to cost. Source: train_sd3_awm.py, lines 240 to 251.

    uniform  l;  t: t l;  t2: t^2 l;  huber: t (sqrt(l + 1e-10) - 1e-5)
    ghuber   (t / p) ((l + 1e-10)^p - 1e-10^p), p = `power`: large losses, of noisy times, weigh less
    """
    if weighting == "uniform":
        return loss
    if weighting == "t":
        return t * loss
    if weighting == "t2":
        return t**2 * loss
    if weighting == "huber":
        return t * ((loss + 1e-10).sqrt() - 1e-5)
    return t / power * ((loss + 1e-10) ** power - 1e-10**power)


def clipped_share(advantage: Tensor, largest: float) -> Tensor:
    """The advantage as a share of its largest value, in [-1, 1]."""
    return (advantage / largest).clamp(-1, 1)


def _awm_needs(*, old: str, **_) -> dict[str, Need]:
    needs = {name: NEEDS[name] for name in ("matching_loss", "draw_times")}
    return needs | ({"old_matching_loss": NEEDS["old_matching_loss"]} if old == "collected" else {})


@stage(
    "matching_objective",
    paper="AWM: advantage weighted matching, arXiv 2509.25050",
    formula="min(A r, A clip(r)), r = exp(w(l_old, t) - w(l, t)), l = mean((v_theta - v)^2) of the clean output",
    needs=_awm_needs,
    modalities=FLOW,
    confidence="verified",
)
def awm(
    evaluation: Evaluation, batch: Batch, *, weighting: Weighting = "ghuber", power: float = 0.25, low: float = 1.0,
    high: float = 1.0, advantage_clip: float = 5.0, advantage_max: float = 1.0,
    old: Literal["self", "collected"] = "collected",
) -> Tensor:  # fmt: skip
    """Policy gradient whose log-likelihood is minus the pre-training loss of the sample. Returns (B, J).

    weighting, power  of the loss, see `weighted_loss`
    low, high         clip of the ratio; 1 leaves it free in [0, 2]
    advantage_clip, advantage_max  advantages are clipped to +-clip, then scaled so that the largest is max
    old               the ratio's denominator: "collected" is the loss of the weights that sampled, one more pass;
                      "self" the detached loss itself, as the authors run it with one update a batch

    A negative advantage raises the loss without bound: only the clip and `velocity_kl` to an anchor hold it, so never
    leave out both. Source: scxue/advantage_weighted_matching, scripts/train_sd3_awm.py, lines 210 to 260 and 1293 to
    1354 (read); their losses are float64, ours float32.
    """
    t = at_least_float32(batch["draw_times"])
    likelihood = -weighted_loss(at_least_float32(evaluation["matching_loss"]), t, weighting, power)
    before = likelihood.detach()
    if old == "collected":
        before = -weighted_loss(at_least_float32(batch["old_matching_loss"]), t, weighting, power)
    ratio = (likelihood - before).exp()
    advantage = clipped_share(batch.advantage, advantage_clip) * advantage_max
    return torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - low, 1 + high))


def _nft_needs(*, mix: float, weighted: bool, space: str, **_) -> dict[str, Need]:
    def loss(share: float) -> Need:
        options = {"mix": share, "space": space, "weighted": weighted}
        return Need("matching_loss", weights="current", options=tuple(sorted(options.items())))

    return {"positive": loss(mix), "negative": loss(-mix)}


@stage(
    "matching_objective",
    paper="DiffusionNFT: online diffusion reinforcement with forward process, arXiv 2509.16117",
    formula="-(A_max / b) (r E+ + (1 - r) E-), r = clip(A / 2 A_max + 1/2, 0, 1), E+- of v_old +- b (v_theta - v_old)",
    needs=_nft_needs,
    modalities=FLOW,
    confidence="verified",
)
def diffusion_nft(
    evaluation: Evaluation, batch: Batch, *, mix: float = 1.0, advantage_max: float = 5.0, weighted: bool = True,
    space: Literal["clean", "velocity"] = "clean",
) -> Tensor:  # fmt: skip
    """Pulls an implicit positive policy to good outputs and an implicit negative one to bad ones. Returns (B, J).

    mix            b: 1 for broad rewards, .1 for OCR and several rewards. Not the KL's coefficient, which the paper
                   calls beta too
    advantage_max  advantages beyond it count as certain
    weighted       errors are divided by their mean absolute value, which carries no gradient; the plain form of the
                   theory is weighted=false, space=velocity
    space          of the error: the clean latent, or the velocity

    Needs `policy.anchor`, the old policy v_old, which also samples. Guidance slows it, and models distilled to a few
    steps blur (NVlabs/DiffusionNFT issues 4, 37, 45). Source: NVlabs/DiffusionNFT, scripts/train_nft_sd3.py, lines
    910 to 970 (read); their weights are float64, ours float32.
    """
    share = (clipped_share(batch.advantage, advantage_max) + 1) / 2
    positive, negative = at_least_float32(evaluation["positive"]), at_least_float32(evaluation["negative"])
    return -(advantage_max / mix) * (share * positive + (1 - share) * negative)
