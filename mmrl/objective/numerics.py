"""Arithmetic shared by the stages: bounded exponentials, half precision, reductions along the action axis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import masked_mean
from mmrl.randomness import Key
from mmrl.record import Batch, Evaluation

Level = Literal["token", "sequence", "geometric"]

LOG_BOUND = 20.0
"""Log-ratios are clamped to +-20 before `exp`: no effect on sane data, avoids inf * 0 on insane data."""


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is promoted to float32; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def safe_exp(x: Tensor) -> Tensor:
    return x.clamp(-LOG_BOUND, LOG_BOUND).exp()


def log_ratio_to(evaluation: Evaluation, batch: Batch, other: Tensor | None = None) -> Tensor:
    """(B, T) current minus old (or `other`) log-probs, 0 outside the mask."""
    other = batch.old_log_probs if other is None else other
    difference = at_least_float32(evaluation.log_probs) - at_least_float32(other)
    return torch.where(batch.mask, difference, torch.zeros_like(difference))


def current_log_probs(evaluation: Evaluation, batch: Batch) -> Tensor:
    """(B, T) differentiable, at least float32, 0 outside the mask."""
    log_probs = at_least_float32(evaluation.log_probs)
    return torch.where(batch.mask, log_probs, torch.zeros_like(log_probs))


def either(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """One of two numbers by `condition`, in the precision of `like` (torch.where would make them float32)."""
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))


def row_advantage(batch: Batch) -> Tensor:
    """(B,) the row's advantage: the mean over its actions."""
    return masked_mean(batch.advantage, batch.mask)


def outcome(batch: Batch) -> Tensor:
    """(B,) what a rollout was worth: its reward, else its success flag."""
    values = batch.reward if batch.reward is not None else batch.success
    if values is None:
        raise ConfigError("this method reads `reward (B,)` or `success (B,)`, and the batch carries neither")
    return values


def labels(batch: Batch) -> Tensor:
    """(B,) 1 or 0: the success flag, else the reward where it is binary.

    Raises ConfigError for rewards that are neither.
    """
    values = outcome(batch) if batch.success is None else batch.success
    seen = values[batch.trained & ~torch.isnan(values)]
    if not ((seen == 0) | (seen == 1)).all():
        odd = seen[(seen != 0) & (seen != 1)][0]
        raise ConfigError(
            f"this method takes rewards as labels and needs them 0 or 1, got {float(odd):g}: give the batch "
            "`success`, or use a verifiable reward"
        )
    return values.to(at_least_float32(batch.old_log_probs).dtype)


def straight_through(value: Tensor, log_probs: Tensor) -> Tensor:
    """`value` in the forward pass; in the backward pass, log-space gradient through this action's own log-prob."""
    return value.detach() + log_probs - log_probs.detach()


def position(mask: Tensor) -> Tensor:
    """(B, T) long: 1-based count of unmasked actions so far; interior gaps do not count."""
    return mask.long().cumsum(1)


def later_sum(values: Tensor, discount: float) -> Tensor:
    """(B, T) discounted sum of this and the later values: F_t = v_t + discount F_{t+1}."""
    sums = torch.empty_like(values)
    running = torch.zeros_like(values[:, 0]) if values.shape[1] else values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        running = values[:, t] + discount * running
        sums[:, t] = running
    return sums


def segment_ids(segment: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """(B, T) one id for each (row, segment), 0 for everything outside the mask, and how many ids there are."""
    width = int(segment.max()) + 1 if segment.numel() else 1
    rows = torch.arange(segment.shape[0], device=segment.device)[:, None]
    ids = rows * width + segment.clamp(min=0) + 1
    return torch.where(mask & (segment >= 0), ids, torch.zeros_like(ids)), segment.shape[0] * width + 1


def segment_sum(values: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
    """(B, T) on each action the sum over its segment `segment (B, T)` of the row; 0 outside the mask."""
    ids, count = segment_ids(segment, mask)
    inside = (ids > 0).to(values.dtype)
    total = values.new_zeros(count).index_add(0, ids.flatten(), (values * inside).flatten())
    return total[ids] * inside


def segment_mean(values: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
    """(B, T) on each action the mean over its segment of the row; differentiable; 0 outside the mask."""
    size = segment_sum(mask.to(values.dtype), segment, mask)
    return segment_sum(values, segment, mask) / size.clamp(min=1)


def sampler_log_probs(batch: Batch) -> Tensor:
    """(B, T) what the sampling engine reported, else the trainer's old log-probs."""
    if "sampler_log_probs" in batch:
        return batch["sampler_log_probs"]
    return batch.old_log_probs


def engine_ratio(batch: Batch, level: Level) -> Tensor:
    """(B, T) `exp(lp_old - lp_sampler)` by action, or of the whole sequence (product, or geometric mean)."""
    apart = (batch.old_log_probs - batch["sampler_log_probs"]) * batch.mask
    if level == "token":
        return safe_exp(apart)
    if level not in ("sequence", "geometric"):
        raise ConfigError(f"level is {level!r}; expected token, sequence or geometric")
    row = apart.sum(1) if level == "sequence" else masked_mean(apart, batch.mask)
    return safe_exp(row)[:, None].expand(batch.mask.shape)


def row_uniform(batch: Batch, purpose: str) -> Tensor:
    """(B, T) numbers in [0, 1), the same for a row in whatever micro-batch it stands.

    `batch["uniform"]` where the caller brought one, else keyed by (seed, step, group, member).
    """
    if "uniform" in batch:
        return batch["uniform"]
    width = batch.mask.shape[1]
    key = Key(batch.seed, batch.step, purpose=purpose)
    rows = zip(batch.group.tolist(), batch.member.tolist(), strict=True)
    draws = [key.at(prompt=str(group), member=member).uniform(width) for group, member in rows]
    return torch.stack(draws).to(batch.old_log_probs.device) if draws else batch.old_log_probs


def whole_rewards(components: Iterable[str]) -> list[str]:
    """The rewards among components, whose parts are called REWARD/PART: what methods of several rewards take where no
    names are given.

    A reward that is nothing but parts gives those. Where the run has one reward, its parts: they are what its whole is
    made of, so the whole is not taken beside several of them, nor is `success`, which is worth nothing by itself.
    """
    of: dict[str, list[str]] = {}
    for name in components:
        of.setdefault(name.partition("/")[0], []).append(name)
    parts = {reward: [n for n in names if "/" in n and not n.endswith("/success")] for reward, names in of.items()}
    if len(of) == 1:
        reward = next(iter(of))
        return parts[reward] if len(parts[reward]) > 1 else of[reward][:1]
    return [name for reward, names in of.items() for name in ([reward] if reward in names else parts[reward] or names)]
