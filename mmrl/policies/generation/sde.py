"""Samplers of flow-matching models as Gaussian policies: pure functions of time, velocity and latent.

Time runs from t = 1 (noise) to t = 0 (image): x_t = (1 - t) x_0 + t e, and the model predicts v = e - x_0.
A step goes from `t` to `t_next < t`, with h = t - t_next. Every sampler here has one form,

    mean = x - h v - drift * x1_hat,   x1_hat = x + (1 - t) v   (the predicted noise)

and differs in `drift` and in the standard deviation of the step:

    kind       drift                          std                    source
    ode        0                              0                      Euler
    flow_sde   g^2 h / 2t, g = a sqrt(t/(1-t))  g sqrt(h)            Flow-GRPO, arXiv 2505.05470
    dance_sde  g^2 h / 2t, g = eta            g sqrt(h)              DanceGRPO, arXiv 2505.07818
    cps        t_next (1 - cos(level pi/2))   t_next sin(level pi/2) Flow-CPS, arXiv 2509.05952
    sage_sde   V / 2t                         sqrt(V)                SAGE-GRPO, arXiv 2603.21872
               V = eta^2 (-h + log((1-t_next)/(1-t)))

At level 0 all of them are the ODE step. `flow_sde`, `dance_sde` and `sage_sde` keep the model's law as steps get
small; `cps` keeps the coefficients of the schedule and contracts towards the posterior mean.

Traps: noise without the drift gives far too wide samples. At t = 1 `flow_sde` would divide by 0: like the
published code, g alone uses the second time of the schedule there. A step without noise has no log-prob.
Arithmetic is float32 whatever the inputs: bfloat16 overflows in the mean.

Shapes: latents `(N, ...)`; times `()` or `(N,)`; what is returned per step has the shape of the times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError, unknown

SamplerKind = Literal["ode", "flow_sde", "dance_sde", "cps", "sage_sde"]
Reduction = Literal["mean", "sum"]
KLKind = Literal["exact", "legacy_no_dt", "velocity_mse"]

KINDS: tuple[str, ...] = get_args(SamplerKind)
DEFAULT_LEVEL = {"ode": 0.0, "flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "sage_sde": 0.3}
"""Noise level of the published image recipes."""

SAGE_CLAMP = 1 - 3e-3
"""`sage_sde` integrates to at most this time: its variance is infinite at t = 1."""


OUTRUN = 1.5
"""Largest standard deviation of a step, in units of the time it ends at: noise above it stays in the image."""


class Transition(NamedTuple):
    """The Gaussian a step draws from: mean `(N, ...)`, std of every element, shaped like the times."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Scoring:
    """How a step is drawn and scored: one object for rollout and training, so that they cannot differ.

    kind, level  the sampler; levels: one for each step of a rollout, in place of `level`
    reduction, normalised  of the log-prob; kl: how the KL to the reference is measured
    """

    kind: str
    level: float
    reduction: str = "mean"
    normalised: bool = True
    kl: str = "exact"
    levels: tuple[float, ...] | None = None

    @property
    def everywhere(self) -> Tensor | float:
        """What all S steps are drawn with: (S,), or one number."""
        return self.level if self.levels is None else torch.tensor(self.levels)

    def at(self, step: int) -> float:
        return self.level if self.levels is None else self.levels[step]


class Noise(NamedTuple):
    """What a sampler adds to the ODE step: `drift` times the predicted noise, and `std`."""

    drift: Tensor
    std: Tensor


def schedule(steps: int, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float32 times from 1 to 0: s u / (1 + (s - 1) u) for u linear from 1 to 0.

    shift  larger spends more steps at high noise: 3 for SD3 and FLUX, 5 for HunyuanVideo, 1 is uniform
    """
    if steps < 1 or shift <= 0:
        raise ConfigError(f"schedule: got steps={steps}, shift={shift}; expected steps >= 1 and shift > 0")
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).float()


def noise(
    kind: str, t: Tensor | float, t_next: Tensor | float, level: Tensor | float, t_first: Tensor | float
) -> Noise:
    """Drift and deviation of a step, each shaped like `t`.

    level    a of flow_sde, eta of dance_sde and sage_sde, 0 to 1 for cps; shaped like `t` where steps differ
    t_first  the second time of the schedule, t_1: flow_sde replaces 1 - t by 1 - t_1 in the first step, whose t is
             1 or, with some schedulers, a hair below it

    `sage_sde` has no positive variance above t_1 of about .997: the step is then the ODE's (std 0).
    """
    if kind not in KINDS:
        raise ConfigError(unknown("sampler", kind, KINDS))
    if not isinstance(level, Tensor) and (level < 0 or (kind == "cps" and level > 1)):
        raise ConfigError(f"sampler {kind}: level {level}; expected {'0 to 1' if kind == 'cps' else 'at least 0'}")
    t, t_next, t_first = (torch.as_tensor(value, dtype=torch.float32) for value in (t, t_next, t_first))
    if not bool((t > 0).all()):
        raise PolicyError("a denoising step starts at t = 0; expected t in (0, 1]")
    h = t - t_next
    if kind == "ode":
        return Noise(torch.zeros_like(h), torch.zeros_like(h))
    if kind == "cps":
        angle = level * math.pi / 2
        cos, sin = (angle.cos(), angle.sin()) if isinstance(angle, Tensor) else (math.cos(angle), math.sin(angle))
        return Noise(t_next * (1 - cos), t_next * sin)
    if kind == "dance_sde":
        variance = level**2 * h
    elif kind == "flow_sde":
        variance = level**2 * t / torch.where(t > t_first, 1 - t_first, 1 - t) * h
    else:
        variance = level**2 * (torch.log((1 - t_next) / (1 - t.clamp(max=SAGE_CLAMP))) - h)
        variance = variance.clamp(min=0)
    return Noise(variance / (2 * t), variance.sqrt())


def sde_step(
    kind: str,
    velocity: Tensor,
    x: Tensor,
    t: Tensor | float,
    t_next: Tensor | float,
    level: Tensor | float,
    t_first: Tensor | float,
) -> Transition:
    """Where one step goes from `x (N, ...)`, float32, with gradient through `velocity (N, ...)`."""
    times = (torch.as_tensor(value, dtype=torch.float32, device=x.device) for value in (t, t_next, t_first))
    t, t_next, t_first = times
    drift, std = noise(kind, t, t_next, level, t_first)
    x, velocity = x.float(), velocity.float()
    predicted_noise = x + wide(1 - t, x) * velocity
    return Transition(x - wide(t - t_next, x) * velocity - wide(drift, x) * predicted_noise, std)


def predicted_clean(velocity: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
    """The clean latent a velocity points to: x - t v."""
    return x.float() - wide(torch.as_tensor(t, dtype=torch.float32, device=x.device), x) * velocity.float()


def stochastic_steps(kind: str, times: Tensor, level: Tensor | float) -> Tensor:
    """(S,) bool: steps of the schedule `times (S + 1,)` that have a log-prob.

    The last step is always the ODE's, for every sampler: its noise would stay in the image, and `cps` has none.
    So is a step whose noise would outrun its end, std > 1.5 t_next: no later step could remove it. Ordinary steps
    stay below 1.02; the last but one of a schedule that ends .28, .009, 0 is at 25.
    """
    std = noise(kind, times[:-1], times[1:], level, times[1]).std
    possible = (std > 0) & (std <= OUTRUN * times[1:])
    possible[-1] = False
    return possible


def transition_log_prob(
    x_next: Tensor, mean: Tensor, std: Tensor, reduction: str = "mean", normalised: bool = True
) -> Tensor | None:
    """(N,) float32 log-density of the step to `x_next (N, ...)`, with gradient through `mean`.

    reduction   "mean" over the D latent elements, the convention of every published recipe: ratios are then the
                D-th root of the density ratio, and clip ranges are 1e-5 to 1e-4. "sum" is the true log-density
    normalised  False gives -(x_next - mean)^2 alone, as the published `cps` recipes do; it differs by a factor
                1 / (2 std^2) per step, so clip ranges do not carry over

    None where the step has no noise: a log-prob of 0 would silently be trained on.
    """
    if reduction not in get_args(Reduction):
        raise ConfigError(unknown("log-prob reduction", reduction, get_args(Reduction)))
    if bool((std <= 0).any()):
        if bool((std <= 0).all()):
            return None
        raise PolicyError("some of these steps are deterministic and have no log-prob; score the stochastic ones only")
    square = (x_next.detach().float() - mean.float()) ** 2
    reduce = getattr(square.flatten(1), reduction)
    if not normalised:
        return -reduce(1)
    constants = (std.log() + 0.5 * math.log(2 * math.pi)).expand(len(square))
    elements = square[0].numel() if reduction == "sum" else 1
    return -reduce(1) / (2 * std**2) - elements * constants


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """(N,) mean over the latent of (a - b)^2, float32."""
    return ((a.float() - b.float()) ** 2).flatten(1).mean(1)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: Tensor, h: Tensor, kind: str = "exact") -> Tensor:
    """(N,) KL of two steps of equal noise, averaged over the latent: (mu - mu_ref)^2 / (2 std^2).

    "legacy_no_dt" divides by g^2 where std^2 = g^2 h belongs, as Flow-GRPO's published code does: h times the
    true KL, so its coefficients (.04, .01) mean coefficient x h.
    """
    if kind not in ("exact", "legacy_no_dt"):
        raise ConfigError(unknown("Gaussian KL", kind, ("exact", "legacy_no_dt")))
    exact = mean_square(mean, reference_mean) / (2 * std**2)
    return exact * h if kind == "legacy_no_dt" else exact


def gradient_equalizer(kind: str, times: Tensor, level: Tensor | float) -> Tensor:
    """(S,) factors that give every step the same gradient norm: median_j(N_j) / N_i, N = |d mean / d v| / std.

    The median is the lower middle value and covers all steps, the last included; a step without noise counts as
    N = 1. Source: SAGE-GRPO, arXiv 2603.21872 and its scheduler.
    """
    t, t_next = times[:-1], times[1:]
    drift, std = noise(kind, t, t_next, level, times[1])
    norm = ((t - t_next) + drift * (1 - t)) / std
    norm = torch.where(torch.isfinite(norm) & (norm > 0), norm, torch.ones_like(norm))
    return norm.median() / norm


def wide(value: Tensor, like: Tensor) -> Tensor:
    """`()` or `(N,)` times, shaped to multiply `like (N, ...)`."""
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (like.dim() - 1))
