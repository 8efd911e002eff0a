"""Outcome shaping: noisy verifiers, rare answer formats, serial exits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.credit.rollouts import component
from mmrl.objective.credit.tokens import progress
from mmrl.objective.groups import group_count, group_extreme, group_mean
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "shaping",
    paper="Verifiable yet Noisy Rewards, 2025",
    formula="backward: (r - fp) / (1 - fp - fn); forward: fn if r = 1, fn - 1 if r = 0",
    confidence="partly",
)
def noisy_verifiers(
    batch: Batch, *, mode: str = "backward", false_positive: float | str = 0.1, false_negative: float | str = 0.1
) -> Tensor:
    """Rewards of a verifier with known error rates, corrected to be right on average. (B,)

    mode            backward is unbiased; forward needs the false-negative rate only, and its expected gradient is
                    a positive multiple of the clean one
    false_positive  share of wrong answers the verifier accepts, or the reward component that holds it row by row
    false_negative  share of right answers it rejects, or a component

    Both are affine in r: under a mean-and-deviation advantage they change nothing, under a mean-only one backward
    is a scale. They matter without a group baseline, or when rates differ inside a group (several verifiers).
    Source: abstract; formulas derived.
    """
    if mode not in ("backward", "forward"):
        raise ConfigError(f"noisy_verifiers: {unknown('mode', mode, ('backward', 'forward'))}")
    positive, negative = (
        component(batch, rate, "noisy_verifiers") if isinstance(rate, str) else torch.full_like(batch.reward, rate)
        for rate in (false_positive, false_negative)
    )
    if mode == "forward":
        return batch.reward - (1 - negative)
    informative = 1 - positive - negative
    if (informative <= 0).any():
        worst = int(informative.argmin())
        raise ConfigError(
            f"noisy_verifiers: false positives {float(positive[worst]):g} and false negatives "
            f"{float(negative[worst]):g} add up to 1 or more: such a verifier says nothing"
        )
    return (batch.reward - positive) / informative


def false_negative_rate(
    previous: float, flipped: float, positives: int, negatives: int, *, momentum: float = 0.9
) -> float:
    """Running false-negative rate of a verifier, from a second verifier on a share of its rejections.

    flipped  share of the rechecked rejections that the second verifier accepts
    """
    missed = flipped * negatives
    observed = missed / (positives + missed) if positives + missed else 0.0
    return momentum * previous + (1 - momentum) * observed


@stage(
    "shaping",
    paper="ARM (Ada-GRPO): adaptive reasoning formats, 2025",
    formula="r_i a_f, a_f = 1 + .5 (G/F_f - 1)(1 + cos(pi t/T)), F_f = members of the group in format f",
    confidence="verified",
)
def arm_ada_grpo(batch: Batch, *, label: str = "format_label") -> Tensor:
    """Rare answer formats of a group are paid more at first, and alike at the end of the run. (B,)

    label  reward component (weight 0) that numbers the format of an answer: direct, think, zoom ...

    An answer without format (NaN) keeps its reward, which should be 0. Source: the authors' code (TEAM-ARM/ARM).
    """
    formats = component(batch, label, "arm_ada_grpo")
    known = scored(batch) & ~torch.isnan(formats)
    _, together = torch.unique(
        torch.stack([batch.group.double(), formats.double().nan_to_num(-1)], 1), dim=0, return_inverse=True
    )
    size = group_count(batch.group, scored(batch)) / group_count(together, known).clamp(min=1)
    scale = 1 + 0.5 * (size - 1) * (1 + math.cos(math.pi * progress(batch)))
    return torch.where(known, batch.reward * scale.to(batch.reward.dtype), batch.reward)


@stage(
    "shaping",
    paper="S-GRPO: early exit by decaying reward, arXiv 2505.07686",
    formula="r_i decay^(n_i - 1) if right, n_i = right answers among exits 1..i",
    confidence="partly",
    needs=("success",),
    modalities=LANGUAGE,
)
def s_grpo(batch: Batch, *, decay: float = 0.5) -> Tensor:
    """Exits of one chain of thought, in member order: each right answer after the first is worth less. (B,)

    decay  of the reward from one right exit to the next

    The exits are rollouts of one group whose prefixes grow with the member. Pair it with `dr_grpo`. Source: a
    third-party analysis with the full algorithm.
    """
    right = successes(batch, "s_grpo") & scored(batch)
    order = torch.argsort(batch.member, stable=True)
    order = order[torch.argsort(batch.group[order], stable=True)]
    _, inverse, count = torch.unique_consecutive(batch.group[order], return_inverse=True, return_counts=True)
    running = right[order].long().cumsum(0)
    start = torch.cat([running.new_zeros(1), running])[count.cumsum(0) - count]
    nth = torch.empty_like(running)
    nth[order] = running - start[inverse]
    factor = torch.as_tensor(decay, dtype=batch.reward.dtype) ** (nth - 1).clamp(min=0)
    return torch.where(right, batch.reward * factor, batch.reward)


@stage(
    "shaping",
    "visurf_label",
    paper="ViSurf, arXiv 2510.10606",
    formula="reward of the label row = mean of the rollouts' rewards where their best reaches it",
    confidence="partly",
    method="visurf",
    needs=("expert",),
)
def visurf_label(batch: Batch, *, thinking: str = "", weight: float = 1.0) -> Tensor:
    """The ground truth in the group stops teaching once a rollout is as good: its advantage becomes 0. (B,)

    thinking  reward component for reasoning in the right form, which the label, having none, does not earn
    weight    that component's weight in the reward

    Reads `expert (B,)`: the row that holds the label, a member of the group like the others (rollout `demonstrations`).
    Source: two independent write-ups of the paper's reward controls; the first, a label written exactly as the policy
    writes, is a matter of the data.
    """
    label, where, reward = batch["expert"].bool(), scored(batch), batch.reward
    if thinking:
        earned = component(batch, thinking, "visurf_label").nan_to_num(0).to(reward)
        reward = torch.where(label, reward - weight * earned, reward)
    rollouts = where & ~label
    best = group_extreme(reward, batch.group, rollouts)
    reached = label & (group_count(batch.group, rollouts) > 0) & (best >= reward)
    return torch.where(reached, group_mean(reward, batch.group, rollouts), reward)
