"""Credit from how far distributions lie apart: from the reference, or from the other rollouts of the group."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import group_extreme
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, Need, stage


def _dgpo_needs(*, divergence: str = "hellinger", kappa: float = 1.0, **_) -> dict[str, Need]:
    probe = "reference_kl" if divergence == "gaussian_kl" else divergence
    needs = {"divergence": Need(probe, weights="old" if divergence == "gaussian_kl" else "reference")}
    return needs | ({"normalized_entropy": Need("normalized_entropy")} if kappa else {})


@stage(
    "credit",
    paper="DGPO: Distribution-Guided Policy Optimization, arXiv 2605.03327",
    formula="A_i L_i softmax_t(s_t / tau), s_t = (1 - sum_v sqrt(pi_old pi_ref)) (H_t / log V)^kappa",
    confidence="partly",
    needs=_dgpo_needs,
)
def dgpo(
    advantage: Tensor, batch: Batch, *, tau: float = 0.5, kappa: float = 1.0, divergence: str = "hellinger"
) -> tuple[Tensor, Tensor]:
    """A rollout's advantage goes to tokens that left the reference while unsure; it replaces the KL penalty. (B, T)

    tau         .5 to 1; larger spreads the advantage evenly
    kappa       weight of uncertainty: confident deviations are suppressed; 0 for flow steps, whose entropy is constant
    divergence  hellinger: squared Hellinger distance of the two token distributions, from a policy that offers it;
                gaussian_kl: flow steps, whose distance is 1 - exp(-KL/4) of the two Gaussians of equal spread

    The weights of a response have mean 1. Source: abstract and two third-party implementations that agree on
    squared distance, softmax times length, tau and kappa.
    """
    distances = ("hellinger", "gaussian_kl")
    if divergence not in distances:
        raise ConfigError(f"dgpo: {unknown('divergence', divergence, distances)}")
    distance = batch["divergence"]
    if divergence == "gaussian_kl":
        distance = -torch.expm1(-distance / 4)
    score = distance * batch["normalized_entropy"] ** kappa if kappa else distance
    share = torch.softmax((score / tau).masked_fill(~batch.mask, -1e30), dim=1)
    weight = share * batch.mask.sum(1, keepdim=True)
    return advantage * weight.to(advantage.dtype), batch.loss_mask


def squared_hellinger(p: Tensor, q: Tensor) -> Tensor:
    """(..., V), (..., V) probabilities -> (...): 1 - sum_v sqrt(p q), in [0, 1]."""
    return 1 - (p * q).sqrt().sum(-1)


@stage(
    "credit",
    paper="TW-GRPO: Reinforcing Video Reasoning with Focused Thinking, arXiv 2505.24718",
    formula="A_i (1 + (alpha - 1) d'_t), d' = min-max over positions of the group's divergence at position t",
    confidence="verified",
    needs=lambda *, divergence="code", **_: {
        "group_divergence": Need("group_divergence", options=(("kind", divergence),))
    },
    modalities=LANGUAGE,
)
def tw_grpo(advantage: Tensor, batch: Batch, *, alpha: float = 1.7, divergence: str = "code") -> tuple[Tensor, Tensor]:
    """Positions where the group's next-token distributions disagree weigh up to alpha. (B, T)

    alpha       1 turns it off; 1.4 to 1.7 in the paper
    divergence  code (the released inner sum, not weighted by the probability) or kl

    The column `group_divergence (B, T)` is `position_divergence` of the whole group, equal in every row of it.
    Source: the authors' code.
    """
    spread = batch["group_divergence"]
    low = group_extreme(spread.masked_fill(~batch.mask, torch.inf).amin(1), batch.group, largest=False)
    high = group_extreme(spread.masked_fill(~batch.mask, -torch.inf).amax(1), batch.group)
    share = (spread - low[:, None]) / (high - low + 1e-8)[:, None]
    weight = 1 + (alpha - 1) * share * batch.mask
    return advantage * weight.to(advantage.dtype), batch.loss_mask


def position_divergence(log_probs: Tensor, mask: Tensor, kind: str = "code") -> Tensor:
    """(T,) disagreement of a group's next-token distributions at each position.

    log_probs (G, T, V) log-softmax, mask (G, T); a rollout that has ended is uniform. `code` sums
    exp(x) - x - 1 over the vocabulary, x = mean log-prob - own log-prob, clipped to +-11; `kl` weighs each term
    with the own probability.
    """
    uniform = -torch.log(torch.tensor(log_probs.shape[-1], dtype=log_probs.dtype))
    log_probs = torch.where(mask[..., None], log_probs, uniform)
    x = (log_probs.mean(0) - log_probs).clamp(-11, 11)
    terms = x.exp() - x - 1
    if kind == "kl":
        terms = terms * log_probs.exp()
    return terms.sum(-1).mean(0)
