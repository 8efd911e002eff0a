"""Entropy and likelihood regularizers. `(evaluation, batch) -> penalty (B, T) or scalar`, to be minimised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.credit.tokens import quantile, training_tokens
from mmrl.objective.groups import group_count, group_extreme, group_mean, group_sum, masked_mean
from mmrl.objective.numerics import either, log_ratio_to, safe_exp
from mmrl.objective.shaping.diversity import diversity_of
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, NEEDS, Need, stage


@stage(
    "regularizer",
    paper="Spotlight on Token Perception for Multimodal RL, arXiv 2510.09285",
    formula="-lp of the sampled token: a one-sample entropy, so a positive coefficient lowers entropy",
    confidence="verified",
    modalities=LANGUAGE,
)
def sampled_entropy(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Minus the log-prob of the sampled tokens: VPPO adds .06 of it as an entropy penalty. (B, T)

    A positive coefficient makes the policy surer of what it sampled; a negative one is an entropy bonus in
    expectation, with the variance of one sample. Source: the authors' code (VPPO-RL, PAPO).
    """
    return -evaluation.log_probs * batch.mask


@stage(
    "regularizer",
    "entropy_bonus",
    paper="maximum-entropy bonus",
    formula="-H_t: a positive coefficient raises entropy",
    confidence="verified",
    needs=("current_entropy",),
    modalities=LANGUAGE,
)
def entropy_bonus(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Minus the exact entropy of the next-token distribution, with gradient. (B, T)

    Usual coefficient .001 to .01.
    """
    return -evaluation["current_entropy"] * batch.mask


def _band(batch: Batch, *, low: float, high: float, measure: str) -> dict[str, Tensor]:
    """+1 on rows of a task whose mean entropy lies above the band, -1 below, 0 inside, for each optimizer step."""
    if measure not in ("sampled", "exact"):
        raise ConfigError(f"entropy_band: measure is {measure!r}; expected 'sampled' or 'exact'")
    entropy = -batch.old_log_probs if measure == "sampled" else batch["entropy"]
    where = training_tokens(batch)
    pairs = torch.stack([batch.update, batch.task], 1)
    _, together = torch.unique(pairs, dim=0, return_inverse=True)
    total = group_sum((entropy * where).sum(1), together)
    mean = total / group_sum(where.sum(1), together).clamp(min=1)
    return {"entropy_side": (mean > high).to(mean.dtype) - (mean < low).to(mean.dtype)}


@stage(
    "regularizer",
    paper="OpenVLThinkerV2 (G2RPO), arXiv 2604.08539",
    formula="relu(H_lo - mean H) + relu(mean H - H_hi), the mean over the tokens of a task",
    confidence="verified",
    method="openvlthinkerv2_g2rpo",
    needs=lambda *, measure="exact", **_: (
        {} if measure == "sampled" else {name: NEEDS[name] for name in ("entropy", "current_entropy")}
    ),
    scope="update",
    modalities=LANGUAGE,
    prepared=_band,
)
def entropy_band(
    evaluation: Evaluation, batch: Batch, *, low: float = 0.2, high: float = 0.6, measure: str = "exact"
) -> Tensor:
    """A task's mean entropy is pulled back only when it leaves a band. (B, T)

    low, high  of the mean entropy in nats: low guards against collapse, high against explosion
    measure    "exact", of the next-token distributions, or "sampled", the mean -log p of the sampled tokens, as the
               authors' code has it

    Usual coefficient .02. Which side a task is on is decided over an optimizer step on the policy that sampled, so
    that micro-batches add up; the authors' code decides in each micro-batch. Source: their fork of EasyR1.
    """
    side = batch["entropy_side"][:, None]
    bound = either(side > 0, high, low, side)
    entropy = -evaluation.log_probs if measure == "sampled" else evaluation["current_entropy"]
    return side * (entropy - bound) * batch.mask


@stage(
    "regularizer",
    paper="entropy target controller",
    formula="-c mean H, c <- clip(c + rate (H0 - mean H_old), 0, c_max) once a batch",
    confidence="ours",
    needs=("entropy", "current_entropy"),
    scope="batch",
    modalities=LANGUAGE,
)
class entropy_target:
    """An entropy bonus whose weight follows a target: it grows while entropy is below, falls to 0 above. (B, T)

    target   mean entropy in nats
    rate     of the controller; larger reacts faster and swings more
    most     largest weight
    initial  weight before the first batch

    Give it coefficient 1. Remembers its weight.
    """

    def __init__(self, *, target: float = 0.3, rate: float = 0.005, most: float = 0.01, initial: float = 0.0):
        self.target, self.rate, self.most, self.weight = target, rate, most, initial

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        entropy = masked_mean(batch["entropy"], training_tokens(batch), dim=None).item()
        self.weight = min(max(self.weight + self.rate * (self.target - entropy), 0.0), self.most)
        return {}

    def __call__(self, evaluation: Evaluation, batch: Batch) -> Tensor:
        return -self.weight * evaluation["current_entropy"] * batch.mask

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def _nucleus_needs(*, top_p: float = 0.8, inclusive: bool = True, **_) -> dict[str, Need]:
    options = (("inclusive", inclusive), ("top_p", top_p))
    return {
        "nucleus_entropy": Need("nucleus_entropy", options=options),
        "current_nucleus_entropy": Need("nucleus_entropy", weights="current", options=options),
    }


@stage(
    "regularizer",
    paper="SIREN: selective entropy regularization, arXiv 2509.25133",
    formula="(mean over responses of the mean nucleus entropy of peak tokens - anchor)^2",
    confidence="verified",
    needs=_nucleus_needs,
    scope="batch",
    modalities=LANGUAGE,
)
class siren:
    """Holds the entropy of each response's peak tokens, inside the top-p nucleus, at its starting value. Scalar.

    top_p      mass of the nucleus
    peak       quantile of a response's own entropies above which (strictly) its tokens are peaks
    inclusive  the smallest set of mass `top_p` or more; False is the release, without the token that crosses

    Usual coefficient .005, on Dr.GRPO with clip .28. Remembers the anchor, the statistic of the first rollout
    batch. Source: the authors' code (Linn3a/siren). Ours: peaks and the distance from the anchor are those of the
    policy that sampled and the term is its first-order expansion around it, so that micro-batches add up (the
    release squares each micro-batch by itself); a response without peaks contributes 0.
    """

    def __init__(self, *, top_p: float = 0.8, peak: float = 0.8, inclusive: bool = True):
        self.peak = peak
        self.anchor: float | None = None

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        entropy, where = batch["nucleus_entropy"], training_tokens(batch)
        rows = zip(entropy, where, strict=True)
        cuts = torch.stack([quantile(h[w], self.peak) if w.any() else h.new_zeros(()) for h, w in rows])
        peaks = (where & (entropy > cuts[:, None])).to(entropy.dtype)
        share = peaks / peaks.sum(1, keepdim=True).clamp(min=1)
        trains = where.any(1)
        level = (share * entropy).sum(1)
        if self.anchor is None:
            self.anchor = (level.sum() / trains.sum().clamp(min=1)).item()
        count = group_count(batch.update, trains).clamp(min=1)
        distance = group_mean(level, batch.update, trains) - self.anchor
        return {
            "siren_value": distance**2 * trains / count,
            "siren_slope": 2 * distance[:, None] * share / count[:, None],
        }

    def __call__(self, evaluation: Evaluation, batch: Batch) -> Tensor:
        moved = evaluation["current_nucleus_entropy"] - batch["nucleus_entropy"]
        return batch["siren_value"].sum() + (batch["siren_slope"] * moved).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self.anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchor = state["anchor"]


def _diverse(batch: Batch, *, diversity: str | None, tau: float) -> dict[str, Tensor]:
    """Row weights a_i / |C| / groups: a softmax of diversity over the right rollouts of a group, times their number."""
    right = successes(batch, "dsdr_local") & scored(batch) & batch.trained
    spread = diversity_of(batch, right, diversity, "dsdr_local")
    top = group_extreme(spread, batch.group, right)
    share = torch.where(right, ((spread - top) / tau).exp(), torch.zeros_like(spread))
    coupled = share / group_sum(share, batch.group).clamp(min=1e-12)
    together = torch.stack([batch.update, batch.group], 1)[right]
    groups = [len(torch.unique(together[together[:, 0] == u], dim=0)) for u in batch.update.tolist()]
    return {"dsdr_weight": coupled / torch.tensor(groups, device=coupled.device).clamp(min=1)}


@stage(
    "regularizer",
    paper="DSDR: dual-scale diversity regularization, arXiv 2602.19895",
    formula="-sum over right i of softmax(dv_i / tau) mean_t rho_it H_it, mean over groups",
    confidence="partly",
    method="dsdr",
    needs=("current_entropy", "success"),
    scope="update",
    modalities=LANGUAGE,
    prepared=_diverse,
)
def dsdr_local(evaluation: Evaluation, batch: Batch, *, diversity: str | None = None, tau: float = 1.0) -> Tensor:
    """Right rollouts keep their token entropy, the more the further they are from the other right ones. Scalar.

    diversity  reward component in [0, 1]; None: distance of the answers' token counts, see shaping `dsdr`
    tau        of the softmax over the right rollouts of a group; smaller favours the most diverse one

    Usual coefficient .001 (ours). Length-invariant: a mean for each response; the entropy is weighted by the
    detached ratio off-policy. Source: abstract and a digest of the full paper for the structure.
    """
    ratio = safe_exp(log_ratio_to(evaluation, batch)).detach()
    return -(batch["dsdr_weight"] * masked_mean(ratio * evaluation["current_entropy"], batch.mask)).sum()
