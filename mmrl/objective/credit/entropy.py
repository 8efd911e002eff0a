"""Entropy credit: the policy's own uncertainty decides which tokens learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.objective.advantages.robust import successes
from mmrl.objective.credit.tokens import (
    check_share,
    progress,
    quantile,
    top_count,
    top_tokens,
    training_tokens,
)
from mmrl.objective.groups import group_centred, group_std
from mmrl.objective.numerics import position, row_uniform
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, NEEDS, Need, stage


@stage(
    "credit",
    "80_20_forking_tokens",
    paper="Beyond the 80/20 Rule: High-Entropy Minority Tokens, arXiv 2506.01939",
    formula="A_it * 1[H_it >= quantile(1 - q) of the entropies of the batch]",
    confidence="verified",
    needs=("entropy",),
    scope="batch",
    modalities=LANGUAGE,
)
def forking_tokens(
    advantage: Tensor, batch: Batch, *, share: float = 0.2, renormalize: bool = False
) -> tuple[Tensor, Tensor]:
    """Learn from the highest-entropy tokens of the batch only. (B, T)

    share        of all training tokens; ties at the quantile are kept
    renormalize  True divides by the kept tokens, which multiplies the step by about 1 / share; False by all

    Source: arXiv 2506.01939 and TRL's `top_entropy_quantile`. TRL takes the quantile over one micro-batch of the
    current policy's entropies; here it covers the rollout batch of all ranks, so micro-batches change nothing.
    """
    check_share("share", share)
    where, entropy = training_tokens(batch), batch["entropy"]
    kept = where.clone()
    if where.any():
        kept &= entropy >= quantile(entropy[where], 1 - share)
    return advantage * kept, batch.loss_mask * kept if renormalize else batch.loss_mask


@stage(
    "credit",
    paper="ERPO: token-level Entropy-Regulated Policy Optimization, arXiv 2603.28204",
    formula="A_i + kappa |A_i| z_t; z standardises sigmoid(gamma z_H) sgn(A_i) within a window of relative position",
    confidence="partly",
    needs=("entropy",),
    modalities=LANGUAGE,
)
def erpo(
    advantage: Tensor, batch: Batch, *, gamma: float = 1.0, windows: int = 10, kappa: float = 0.25, bound: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Uncertain tokens get more of the advantage, compared with tokens at the same stage of the group's answers. (B, T)

    gamma    steepness of the entropy gate; 0 gates nothing
    windows  equal parts a response is cut into (fewer where it is shorter)
    kappa    share of |A_i| that moves; the sign of A_i stays as long as kappa * bound <= 1
    bound    z is clipped to +-bound

    Source: abstract and a third-party formula sheet for gate and signal; windows in detail, the token signal
    (here 1) and the anchor on A_i are ours, as are the defaults.
    """
    where = training_tokens(batch)
    gate = torch.sigmoid(gamma * _standardised(batch["entropy"], where, batch.group[:, None].expand_as(where)))
    count = batch.mask.sum(1, keepdim=True)
    parts = count.clamp(max=windows)
    window = (position(batch.mask) - 1).clamp(min=0) * parts // count.clamp(min=1)
    _, group = torch.unique(batch.group, return_inverse=True)
    z = _standardised(gate * advantage.sign(), where, group[:, None] * windows + window).clamp(-bound, bound)
    return advantage + kappa * advantage.abs() * z.to(advantage.dtype), batch.loss_mask


def _standardised(values: Tensor, where: Tensor, group: Tensor) -> Tensor:
    """(B, T) z-scores within the token's group; 0 outside `where`, for lone tokens and where nothing varies."""
    flat, ids = values[where], group[where]
    spread = group_std(flat, ids)
    z = torch.where(spread > 1e-12, group_centred(flat, ids) / spread.clamp(min=1e-12), torch.zeros_like(flat))
    return torch.zeros_like(values).masked_scatter(where, z)


@stage(
    "credit",
    "entropy_dynamics_clip_b",
    paper="On the Entropy Dynamics in Reinforcement Fine-Tuning, arXiv 2602.03392",
    formula="drop A < 0 tokens with S - mean S < -mu std S; S_t = p_t (H_t + log p_t)",
    confidence="verified",
    method="entropy_dynamics",
    needs=("entropy",),
    scope="batch",
    modalities=LANGUAGE,
)
def clip_b(advantage: Tensor, batch: Batch, *, mu: float = 2.5) -> tuple[Tensor, Tensor]:
    """Negative tokens that would move entropy most, judged by S over the batch, leave loss and denominator. (B, T)

    mu  standard deviations that are kept; smaller drops more

    Raising the logit of the sampled token changes entropy by -S. Source: the authors' code (Trinity-RFT).
    """
    where = training_tokens(batch)
    if not where.any():
        return advantage, batch.loss_mask
    slope = entropy_slope(batch.old_log_probs, batch["entropy"])
    spread = slope[where].std(correction=0)
    steep = (slope - slope[where].mean() < -mu * spread) & (spread >= 1e-12)
    kept = ~(where & (advantage < 0) & steep)
    return advantage * kept, batch.loss_mask * kept


@stage(
    "credit",
    "entropy_dynamics_clip_v",
    paper="On the Entropy Dynamics in Reinforcement Fine-Tuning, arXiv 2602.03392",
    formula="drop A < 0 tokens with N - S > mu std(N - S); N = sum_v p_v S_v; at most max_share of the batch",
    confidence="verified",
    method="entropy_dynamics",
    needs=lambda **_: {"entropy": NEEDS["entropy"], "expected_entropy_slope": Need("expected_entropy_slope")},
    scope="batch",
    modalities=LANGUAGE,
)
def clip_v(advantage: Tensor, batch: Batch, *, mu: float = 2.0, max_share: float = 1e-4) -> tuple[Tensor, Tensor]:
    """As clip_b, against the expected change of the whole distribution; the worst go first. (B, T)

    mu         standard deviations that are kept
    max_share  of the batch's tokens that may be dropped

    Source: the authors' code (Trinity-RFT).
    """
    where = training_tokens(batch)
    if not where.any():
        return advantage, batch.loss_mask
    excess = batch["expected_entropy_slope"] - entropy_slope(batch.old_log_probs, batch["entropy"])
    steep = where & (advantage < 0) & (excess > mu * excess[where].std(correction=0))
    most = int(max_share * int(where.sum()))
    ranked = torch.where(steep, excess, torch.full_like(excess, -torch.inf))
    worst = top_count(ranked, steep, most, row_uniform(batch, "clip_v"))
    return advantage * ~worst, batch.loss_mask * ~worst


def entropy_slope(log_probs: Tensor, entropy: Tensor) -> Tensor:
    """S = p (H + log p) of the sampled tokens: minus the derivative of entropy by their logit."""
    return log_probs.exp() * (entropy + log_probs)


@stage(
    "credit",
    "d3s_tokens",
    paper="D3S: Dynamic Dual-Level Down-Sampling, arXiv 2509.22115",
    formula="keep the top K(step) of the training tokens by |A_it| H_it",
    confidence="partly",
    method="d3s",
    needs=("entropy",),
    scope="batch",
    modalities=LANGUAGE,
)
def d3s_tokens(
    advantage: Tensor, batch: Batch, *, first: float = 0.2, last: float = 0.6, renormalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Of the rollouts that train, keep the tokens where advantage and uncertainty are both large. (B, T)

    first, last  share of tokens kept at the start and at the end of the run, linear between: strict first,
                 relaxed later, since a strict setting overfits late
    renormalize  True divides by the kept tokens

    Source: abstract and a third-party note with the equations; the shares are ours.
    """
    share = (1 - progress(batch)) * first + progress(batch) * last
    check_share("share", share)
    scores = advantage.abs() * batch["entropy"]
    kept = top_tokens(scores, training_tokens(batch), share, row_uniform(batch, "d3s tokens"))
    return advantage * kept, batch.loss_mask * kept if renormalize else batch.loss_mask


@stage(
    "credit",
    paper="DCPO: distribution-centric policy optimization, 2026",
    formula="(1 - a) A_it + a 1[right] exp(lp_T - lp), a = x/(1 + x), x = min(|H0 - H_prev|, cap) / share right",
    confidence="verified",
    needs=lambda *, hot=1.2, cold=0.8, **_: {
        "entropy": NEEDS["entropy"],
        "hot_log_probs": Need("tempered_log_probs", options=(("temperature", hot),)),
        "cold_log_probs": Need("tempered_log_probs", options=(("temperature", cold),)),
        **columns("success"),
    },
    scope="batch",
    modalities=LANGUAGE,
)
class dcpo_distribution:
    """Right samples also reinforce a hotter or colder copy of the policy, which steers entropy to a target. (B, T)

    target     entropy in nats, .25 to .5 in the paper; above the policy's own it heats, below it cools
    cap        of the distance from the target
    hot, cold  temperatures of the copy, relative to the sampling temperature

    Remembers the mean entropy of the last batch; the first batch uses its own. Source: the authors' code
    (597358816/DCPO). Ours: nothing right in the batch turns the term off (the code divides by zero there).
    """

    def __init__(self, *, target: float = 0.3, cap: float = 0.1, hot: float = 1.2, cold: float = 0.8):
        self.target, self.cap = target, cap
        self.previous: float | None = None

    def __call__(self, advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        where = training_tokens(batch)
        entropy = batch["entropy"][where].mean().item() if where.any() else self.target
        previous = entropy if self.previous is None else self.previous
        self.previous = entropy
        right = successes(batch, "dcpo_distribution") & batch.counted.bool()
        share = right.sum().item() / max(int(batch.counted.sum()), 1)
        if share == 0:
            return advantage, batch.loss_mask
        strength = min(abs(self.target - previous), self.cap) / share
        strength = strength / (1 + strength)
        copy = batch["hot_log_probs"] if previous <= self.target else batch["cold_log_probs"]
        pull = (copy - batch.old_log_probs).exp() * (right[:, None] & batch.mask)
        return (1 - strength) * advantage + strength * pull.to(advantage.dtype), batch.loss_mask

    def state_dict(self) -> dict[str, Any]:
        return {"previous": self.previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.previous = state["previous"]
