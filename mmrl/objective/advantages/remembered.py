"""Baselines that remember a prompt across steps: DCPO's smooth standardisation, SPO's Beta tracker.

Rows are known by `batch.prompt (B,)`, a number that follows the prompt's id on every rank and in every run.
State is saved with the checkpoint; every rank sees the gathered batch and keeps the same state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_centred, group_mean, group_normalized, group_std, representatives
from mmrl.record import Batch
from mmrl.stages import stage


def _prompts(batch: Batch, asked_by: str) -> list[int]:
    if batch.prompt is None:
        raise ConfigError(f"advantage {asked_by!r} remembers prompts: give the batch `prompt (B,)` numbers")
    return batch.prompt.tolist()


@stage(
    "advantage",
    method="dcpo_clipping",
    paper="DCPO: Dynamic Clipping Policy Optimization, arXiv 2509.02333",
    formula="the smaller in size of ((s-1) A_new + A_total)/s and (A_new + (s-1) A_total)/s at visit s of the prompt",
    confidence="verified",
)
class dcpo_smooth:
    """Blends the group's statistics with those accumulated for this prompt over past visits.

    A_new uses the group's mean and deviation, A_total the running ones, each visit weighing the same; of the two
    blends the smaller is taken, ties the second. A group without spread still learns from its history.

    Returns (B,). Source: lime-RL/DCPO, core_algos.py (unbiased group deviation, no eps).
    """

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, float, float]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        prompts = _prompts(batch, "dcpo_smooth")
        mean = group_mean(batch.reward, batch.group, batch.counted)
        std = group_std(batch.reward, batch.group, batch.counted)
        visits, totals, spreads = torch.ones_like(mean), mean.clone(), std.clone()
        for row in representatives(batch.group).tolist():
            members = batch.group == batch.group[row]
            if not (members & batch.counted).any():
                continue
            visit, total, spread = self._visit(prompts[row], float(mean[row]), float(std[row]))
            visits[members], totals[members], spreads[members] = visit, total, spread
        new = _scaled(group_centred(batch.reward, batch.group, batch.counted), std)
        old = _scaled(torch.where(batch.counted, batch.reward - totals, torch.zeros_like(totals)), spreads)
        first, second = ((visits - 1) * new + old) / visits, (new + (visits - 1) * old) / visits
        return torch.where(first.abs() < second.abs(), first, second)

    def _visit(self, prompt: int, mean: float, std: float) -> tuple[int, float, float]:
        """Pool this visit into the prompt's history; returns (visits, running mean, running deviation)."""
        visits, total, variance = self.seen.get(prompt, (0, 0.0, 0.0))
        s = visits + 1
        variance = (visits * variance + std**2 + visits / s * (mean - total) ** 2) / s
        total += (mean - total) / s  # of equal means exactly that mean
        self.seen[prompt] = (s, total, variance)
        return s, total, variance**0.5

    def state_dict(self) -> dict[str, Any]:
        return {"seen": [[prompt, *values] for prompt, values in self.seen.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = {int(prompt): (int(s), mean, variance) for prompt, s, mean, variance in state["seen"]}


def _scaled(centred: Tensor, std: Tensor) -> Tensor:
    return torch.where(std > 0, centred / std.clamp(min=torch.finfo(std.dtype).tiny), torch.zeros_like(centred))


def initial_beta(samples: int, correct: int, forget: float = 0.875) -> tuple[float, float]:
    """(a, b) of a prompt before its first visit, from offline samples; (.5, .5) without any."""
    if samples == 0:
        return 0.5, 0.5
    strength = 1 / (1 - forget)
    return strength * (correct + 0.5) / (samples + 1), strength * (samples - correct + 0.5) / (samples + 1)


def retention(drift: float, half_life: float = 0.06, low: float = 0.875, high: float = 0.96) -> float:
    """How much of the past is kept after the policy moved by `drift`, the mean |log-prob change| of an old answer."""
    return min(max(2 ** (-drift / half_life), low), high)


def sampling_weight(a: float, b: float) -> float:
    """SPO's priority of a prompt: sqrt(v (1 - v)) + 0.05, highest where success is uncertain."""
    v = a / (a + b)
    return (v * (1 - v)) ** 0.5 + 0.05


@stage(
    "advantage",
    paper="Single-stream Policy Optimization (SPO), arXiv 2509.13232",
    formula="A = z_batch(r - v), v = a/(a + b) before this reward; a <- rho a + r, b <- rho b + 1 - r",
    confidence="verified",
    scope="batch",
)
class spo_single_stream:
    """No groups: a Beta estimate of each prompt's success, kept across steps, is the baseline.

    samples, rate  offline samples of each prompt before training and their success rate; 0: start from (.5, .5)
    half_life      drift of the policy that halves the memory
    low, high      bounds of the retained share; the drift is read from the column `policy_drift (B,)` where the
                   rollouts carry it, else the lower bound is used

    Rewards must lie in [0, 1]. Returns (B,). Several rows of one prompt count as several observations of one
    visit. Source: verl-recipe, spo_ray_trainer.py.
    """

    def __init__(
        self, *, samples: int = 0, rate: float = 0.5, half_life: float = 0.06, low: float = 0.875, high: float = 0.96
    ):
        self.prior = initial_beta(samples, round(samples * rate), low)
        self.half_life, self.low, self.high = half_life, low, high
        self.beta: dict[int, tuple[float, float]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        prompts = _prompts(batch, "spo_single_stream")
        rewards = batch.reward[batch.counted & ~torch.isnan(batch.reward)]
        if len(rewards) and not (rewards.min() >= 0 and rewards.max() <= 1):
            raise ConfigError(
                f"advantage 'spo_single_stream' tracks a success rate: rewards must lie in [0, 1], got "
                f"[{rewards.min():g}, {rewards.max():g}]"
            )
        value = torch.tensor([self.value(p) for p in prompts]).to(batch.reward)
        self._observe(batch, prompts)
        everyone = torch.zeros_like(batch.group)
        return group_normalized(batch.reward - value, everyone, batch.counted, eps=1e-8)

    def value(self, prompt: int) -> float:
        a, b = self.beta.get(prompt, self.prior)
        return a / (a + b)

    def _observe(self, batch: Batch, prompts: list[int]) -> None:
        drift = batch["policy_drift"].tolist() if "policy_drift" in batch else None
        scored = (batch.counted & ~torch.isnan(batch.reward)).tolist()
        rewards: dict[int, list[float]] = {}
        keep: dict[int, float] = {}
        for row, prompt in enumerate(prompts):
            if scored[row]:
                rewards.setdefault(prompt, []).append(float(batch.reward[row]))
                keep[prompt] = self.low if drift is None else retention(
                    drift[row], self.half_life, self.low, self.high
                )  # fmt: skip
        for prompt, values in rewards.items():
            a, b = self.beta.get(prompt, self.prior)
            good, rho = sum(sorted(values)), keep[prompt]
            self.beta[prompt] = (rho * a + good, rho * b + len(values) - good)

    def state_dict(self) -> dict[str, Any]:
        return {"beta": [[prompt, a, b] for prompt, (a, b) in self.beta.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.beta = {int(prompt): (a, b) for prompt, a, b in state["beta"]}
