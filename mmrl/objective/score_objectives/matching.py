"""Group objectives on matching losses: DGPO, CRD, GDRO. Pair them with score `matching_loss`, scores -l of (B, J).

They compare the current losses of all members of a group, so micro-batches need the whole group's first: that is what
a score objective is for. Columns are (B, J), J draws of time and noise, equal for the members of a group
(`policy.draws.shared`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_count, group_sum
from mmrl.objective.matching_objectives.forward_process import clipped_share
from mmrl.objective.numerics import at_least_float32
from mmrl.record import Batch
from mmrl.stages import FLOW, NEEDS, Need, stage


def _columnwise(values: Tensor, group: Tensor) -> Tensor:
    """(B, J) sums over the members of a group, draw by draw."""
    return torch.stack([group_sum(column, group) for column in values.unbind(1)], 1)


def _dgpo_needs(*, reference: str, clip: float | None, **_) -> dict[str, Need]:
    against = "anchor_matching_loss" if reference == "anchor" else "ref_matching_loss"
    needs = {"against": NEEDS[against]}
    return needs if clip is None else needs | {"anchor_matching_loss": NEEDS["anchor_matching_loss"]}


@stage(
    "score_objective",
    paper="DGPO: direct group preference optimisation, arXiv 2510.08425",
    formula="-mean_i w A_i l_i, w = sg sigmoid(sum_j A_j b (l_j - l_ref,j) / G) over the group, l the matching loss",
    needs=_dgpo_needs,
    modalities=FLOW,
    confidence="verified",
)
def dgpo_direct(
    scores: Tensor, batch: Batch, *, beta: float = 100.0, reference: Literal["reference", "anchor"] = "reference",
    clip: float | None = 1e-2, advantage_clip: float = 5.0,
) -> Tensor:  # fmt: skip
    """A group preference without log-probs: groups that are ordered well already weigh less. Returns a scalar.

    beta            100 (GenEval, OCR) or 10 (PickScore) with a frozen reference, 2000 with an anchor
    reference       what losses are compared with in the weight
    clip            where exp(l_anchor - l) has gone further than this the way the advantage points, a rollout does not
                    train; null for none. 1e-2 (GenEval, OCR), 5e-2 (PickScore) with guided rollouts, 1e-3 without
    advantage_clip  of the advantages

    Source: Luo-Yihong/DGPO, scripts/train_sd3_dgpo.py, lines 162 to 192 and 1095 to 1177, config/dgpo_wocfg.py (read).
    """
    loss, against = -scores, at_least_float32(batch["against"])
    advantage = batch.advantage.clamp(-advantage_clip, advantage_clip)
    size = group_count(batch.group).to(loss)[:, None]
    weight = torch.sigmoid(_columnwise(advantage * beta * (loss.detach() - against) / size, batch.group))
    if clip is not None:
        ratio = (at_least_float32(batch["anchor_matching_loss"]) - loss.detach()).exp()
        gone = torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
        loss = torch.where(gone, loss.detach(), loss)
    return -(weight * advantage * loss).mean()


def _crd_needs(*, weighted: bool, **_) -> dict[str, Need]:
    return {"anchor_loss": Need("matching_loss", weights="anchor", options=_options(weighted))}


def _options(weighted: bool) -> tuple:
    return (("weighted", True),) if weighted else ()


@stage(
    "score_objective",
    paper="CRD: diffusion reinforcement learning via centered reward distillation, arXiv 2603.14128",
    formula="-(A_max / b) mean (b rho_c - R_c)^2, rho = l_old - l, R = clip(A / 2 A_max + 1/2, 0, 1), _c centred in "
    "the group",
    confidence="partly",
    needs=_crd_needs,
    modalities=FLOW,
)
def crd(
    scores: Tensor, batch: Batch, *, beta: float = 1.0, loss: Literal["mse", "bce"] = "mse", weighted: bool = True,
    advantage_max: float = 5.0,
) -> Tensor:  # fmt: skip
    """The implicit reward of the policy is regressed onto the external one, both centred. Returns a scalar.

    beta           scale of the implicit reward
    loss           squared error, or cross-entropy of logits b rho_c with labels sigmoid(R_c)
    weighted       the anchor's losses are divided by their mean absolute error; say the same to score `matching_loss`
    advantage_max  advantages beyond it count as the largest reward

    The mean that centres rho carries no gradient. Needs `policy.anchor`. Source: X-GenGroup/Flow-Factory,
    trainers/rl/crd.py, `_implicit_reward` and `_compute_crd_loss` with uniform weights (read); the authors' own code
    was not, and Flow-Factory centres over all rows of a micro-batch where we centre in the group.
    """
    rho = scores + at_least_float32(batch["anchor_loss"])
    reward = (clipped_share(batch.advantage, advantage_max) + 1) / 2
    implicit = beta * (rho - _centre(rho.detach(), batch.group))
    wanted = reward - _centre(reward, batch.group)
    if loss == "bce":
        return -binary_cross_entropy_with_logits(implicit, torch.sigmoid(wanted)) * advantage_max / beta
    return -((implicit - wanted) ** 2).mean() * advantage_max / beta


def _centre(values: Tensor, group: Tensor) -> Tensor:
    return _columnwise(values, group) / group_count(group).to(values)[:, None]


@stage(
    "score_objective",
    paper="GDRO: group-level reward post-training suitable for diffusion models, arXiv 2601.02036",
    formula="-mean_g sum_i [logsumexp_{m>=i} s_m - sum_{j>=i} softmax_{j>=i}(r_j / tau) s_j] - gamma l_best, rows by "
    "falling r, s = -b (l - l_ref)",
    confidence="partly",
    needs=("ref_matching_loss", "reward"),
    modalities=FLOW,
)
def gdro(scores: Tensor, batch: Batch, *, beta: float = 12.0, temperature: float = 0.05, gamma: float = 0.5) -> Tensor:
    """Listwise cross-entropy between the rewards of a group and the policy's implicit scores. Returns a scalar.

    beta         12 (OCR; 6 hacks the reward) or 6 (GenEval; 12 is weaker, 4 collapses)
    temperature  of the rewards: .05; .025 is unstable, .5 weak. A pair at temperature -> 0 is DPO
    gamma        weight of the matching loss of the best output: .5 (OCR), 1 (GenEval)

    Equal rewards give uniform targets. The mean over the latent is ours: with the squared norm of equation 5 scores
    saturate at the published beta. Source: two sets of notes that quote equations 2 to 9 and 12; no code is published.
    """
    if temperature <= 0:
        raise ConfigError(f"gdro: temperature is {temperature:g}; expected a positive number")
    implicit = beta * (scores + at_least_float32(batch["ref_matching_loss"]))
    groups = torch.unique(batch.group)
    total = scores.new_zeros(())
    for group in groups:
        rows = (batch.group == group).nonzero().squeeze(1)
        rows = rows[batch.reward[rows].argsort(descending=True, stable=True)]
        total = total + listwise(implicit[rows], batch.reward[rows] / temperature).mean()
        total = total - gamma * scores[rows[0]].mean()
    return -total / max(len(groups), 1)


def listwise(scores: Tensor, logits: Tensor) -> Tensor:
    """(J,) Plackett-Luce cross-entropy of `scores (k, J)` with the softmax of `logits (k,)`, rows by falling logit."""
    total = scores.new_zeros(scores.shape[1])
    for i in range(len(scores) - 1):
        rest = logits[i:].to(scores).softmax(0)[:, None]
        total = total + scores[i:].logsumexp(0) - (rest * scores[i:]).sum(0)
    return total
