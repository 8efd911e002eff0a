"""Euphonium: rollouts pushed up the gradient of a reward on noisy states, scored as if they had not been.

    m' = m + c grad_x P(x_t, t),   c = scale x h;   x_next = m' + std xi;   log-probs of x_next under m

The policy is scored by its own mean, so what earns reward because of the push raises the log-prob of what was pushed:
the policy learns to go there by itself, and evaluation has no push. P is differentiable in the latent state;
`reward: file.py:function` is called as `f(x, t, prompts)` with states (N, ...), times (N,) and N texts, and returns
(N,). Source: zerzerzerz/Euphonium, euphonium/grpo/grpo_sampling/flux_step.py and its script (arXiv 2602.04928): scale
.01 is eta^2 / (2 x 3.125).

A reward of outputs (`of: pixels`) is called as `f(outputs, prompts)` and has no gradient. It is estimated from pairs of
outputs on both sides of the clean latent that the velocity points to, in random directions u of +-1 (SPSA, Spall 1992):

    g = (r(x0 + s u) - r(x0 - s u)) / 2s u,   x0 = x_t - t v

and taken for the gradient at x_t, as if the velocity did not change with it. That much is after the paper's abstract;
its estimator was not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl import plugins
from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.reuse import ReuseConfig
from mmrl.policies.generation.sde import predicted_clean
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.settings import Section

Decode = Callable[[Tensor, Conditioned], list[Any]]
"""(clean latents (N, ...), conditions of N rows) -> N outputs"""


@dataclass
class Seen:
    """What else is known of N states: the velocity found there, their conditions, and their members."""

    velocity: Tensor
    conditioned: Conditioned
    members: list[int]


class PushConfig(Section):
    """What rollouts are pushed by.

    reward  file.py:function of (x, t, prompts), or package.module:function; differentiable in x
    of      what it judges: "latents", the noisy state; "pixels": (outputs, prompts) of the output that the state points
            to, without gradient, at two outputs and two judgements for each of `pairs` of every stochastic step
    radius, pairs  of the estimate for pixels: how far from the clean latent it looks, and how often
    scale   of the push, times the length of the step; 0 only scores
    first, last  stochastic steps in [first, last) are pushed; null last: to the end. The paper pushes the last quarter
    normalise  every gradient to length 1 first; one that is 0 is left
    keep    store the pushed mean of each trained step, which regularizer push_distillation pulls to
    """

    reward: str = ""
    of: Literal["latents", "pixels"] = "latents"
    radius: float = Field(0.1, gt=0)
    pairs: int = Field(1, ge=1)
    scale: float = Field(0.01, ge=0)
    first: int = Field(0, ge=0)
    last: int | None = Field(None, ge=1)
    normalise: bool = False
    keep: bool = False


class Push:
    """The push of each step, and what the reward says of the states it leads to.

    texts   {prompt id: its text}
    decode  outputs of clean latents, and key: of the directions they are tried in; for a reward of pixels
    """

    def __init__(
        self, config: PushConfig, texts: Mapping[str, str], decode: Decode | None = None, key: Key | None = None
    ):
        if not plugins.is_reference(config.reward):
            raise ConfigError(
                f"policy.push.reward={config.reward!r}: name a reward of latent states, file.py:function of "
                "(x, t, prompts); or of outputs, with policy.push.of=pixels"
            )
        self.config, self.texts, self.decode, self.key = config, texts, decode, key
        self.reward: Callable[..., Any] = plugins.load(config.reward, "policy.push.reward")

    def shift(
        self, step: int, x: Tensor, t: Tensor, h: Tensor, prompts: Sequence[str], seen: Seen | None = None
    ) -> Tensor:
        """(N, ...) what is added to the mean of step `step` from `x (N, ...)`."""
        config = self.config
        within = config.first <= step < (step + 1 if config.last is None else config.last)
        if not within or not config.scale:
            return torch.zeros_like(x)
        gradient = self._slope(x, t, prompts) if config.of == "latents" else self._estimated(step, x, t, prompts, seen)
        if not bool(torch.isfinite(gradient).all()):
            raise PolicyError(f"policy.push.reward={config.reward!r}: its gradient is not finite at t={float(t):.3f}")
        if config.normalise:
            norm = gradient.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
            gradient = torch.where(norm > 0, gradient / norm.clamp(min=1e-12), gradient)
        return config.scale * h * gradient

    @torch.no_grad()
    def worth(self, x: Tensor, t: Tensor, prompts: Sequence[str], seen: Seen | None = None) -> Tensor:
        """(N,) of the states `x` at time t. Of pixels: of what they point to by the velocity of the step before, since
        their own is not known yet."""
        if self.config.of == "latents":
            return self._of(x, t, prompts).float()
        assert seen is not None
        return self._judged(predicted_clean(seen.velocity, x, t), prompts, seen).to(x.device)

    def _slope(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N, ...) the gradient of a reward of latents."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            worth = self._of(leaf, t, prompts)
            if not worth.requires_grad:
                raise PolicyError(f"policy.push.reward={self.config.reward!r} has no gradient in the latent state")
            return torch.autograd.grad(worth.sum(), leaf)[0]

    @torch.no_grad()
    def _estimated(self, step: int, x: Tensor, t: Tensor, prompts: Sequence[str], seen: Seen | None) -> Tensor:
        """(N, ...) the mean over `pairs` of what a reward of pixels says of both sides."""
        assert seen is not None and self.key is not None
        clean, radius, total = predicted_clean(seen.velocity, x, t), self.config.radius, torch.zeros_like(x)
        for pair in range(self.config.pairs):
            places = zip(prompts, seen.members, strict=True)
            keys = [self.key.at(prompt=p, member=m, purpose=f"push {step} {pair}") for p, m in places]
            u = torch.stack([key.normal(*x.shape[1:]).sign() for key in keys]).to(x)
            above = self._judged(clean + radius * u, prompts, seen)
            below = self._judged(clean - radius * u, prompts, seen)
            slope = ((above - below) / (2 * radius)).to(x).reshape(-1, *[1] * (x.dim() - 1))
            total += slope * u / self.config.pairs
        return total

    def _of(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._checked(self.reward(x, t.expand(len(x)), self._named(prompts)), len(x), "states")

    def _judged(self, clean: Tensor, prompts: Sequence[str], seen: Seen) -> Tensor:
        """(N,) float32 of the outputs of clean latents."""
        assert self.decode is not None
        outputs = self.decode(clean, seen.conditioned)
        found = torch.as_tensor(self.reward(outputs, self._named(prompts)), dtype=torch.float32)
        return self._checked(found, len(clean), "outputs")

    def _named(self, prompts: Sequence[str]) -> list[str]:
        return [self.texts[name] for name in prompts]

    def _checked(self, found: Tensor, count: int, what: str) -> Tensor:
        if found.shape != (count,):
            raise PolicyError(
                f"policy.push.reward={self.config.reward!r} returned {tuple(found.shape)} for {count} {what}; "
                f"expected ({count},)"
            )
        return found


def aids(
    config: Any, requests: Sequence[Request], greedy: bool, decode: Decode, key: Key
) -> tuple[float | None, Push | None, ReuseConfig | None, float | None]:
    """What is of rollouts and not of evaluation: the tail behind the last noise, the push, blocks that are reused, and
    how far siblings draw apart."""
    if greedy:
        return None, None, None, None
    texts = {request.prompt.id: request.prompt.text for request in requests}
    push = config.push and Push(config.push, texts, decode, key)
    return config.tail, push, config.reuse, config.sampler.siblings
