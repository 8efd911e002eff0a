"""Euphonium: rollouts pushed up the gradient of a reward on noisy states, scored as if they had not been.

    m' = m + c grad_x P(x_t, t),   c = scale x h;   x_next = m' + std xi;   log-probs of x_next under m

The policy is scored by its own mean, so what earns reward because of the push raises the log-prob of what was pushed:
the policy learns to go there by itself, and evaluation has no push. P is differentiable in the latent state;
`reward: file.py:function` is called as `f(x, t, prompts)` with states (N, ...), times (N,) and N texts, and returns
(N,). Source: zerzerzerz/Euphonium, euphonium/grpo/grpo_sampling/flux_step.py and its script (arXiv 2602.04928): scale
.01 is eta^2 / (2 x 3.125). Its zero-order estimate for rewards of pixels and its distillation are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmrl import plugins
from mmrl.errors import ConfigError, PolicyError
from mmrl.record import Request
from mmrl.settings import Section


class PushConfig(Section):
    """What rollouts are pushed by.

    reward  file.py:function of (x, t, prompts), or package.module:function; differentiable in x
    scale   of the push, times the length of the step; 0 only scores
    first, last  stochastic steps in [first, last) are pushed; null last: to the end. The paper pushes the last quarter
    normalise  every gradient to length 1 first; one that is 0 is left
    """

    reward: str = ""
    scale: float = Field(0.01, ge=0)
    first: int = Field(0, ge=0)
    last: int | None = Field(None, ge=1)
    normalise: bool = False


class Push:
    """The push of each step, and what the reward says of the states it leads to.

    texts  {prompt id: its text}
    """

    def __init__(self, config: PushConfig, texts: Mapping[str, str]):
        if not plugins.is_reference(config.reward):
            raise ConfigError(
                f"policy.push.reward={config.reward!r}: name a reward of latent states, file.py:function of "
                "(x, t, prompts)"
            )
        self.config, self.texts = config, texts
        self.reward: Callable[..., Tensor] = plugins.load(config.reward, "policy.push.reward")

    def shift(self, step: int, x: Tensor, t: Tensor, h: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N, ...) what is added to the mean of step `step` from `x (N, ...)`."""
        config = self.config
        within = config.first <= step < (step + 1 if config.last is None else config.last)
        if not within or not config.scale:
            return torch.zeros_like(x)
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            worth = self._of(leaf, t, prompts)
            if not worth.requires_grad:
                raise PolicyError(f"policy.push.reward={config.reward!r} has no gradient in the latent state")
            (gradient,) = torch.autograd.grad(worth.sum(), leaf)
        if not bool(torch.isfinite(gradient).all()):
            raise PolicyError(f"policy.push.reward={config.reward!r}: its gradient is not finite at t={float(t):.3f}")
        if config.normalise:
            norm = gradient.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
            gradient = torch.where(norm > 0, gradient / norm.clamp(min=1e-12), gradient)
        return config.scale * h * gradient

    @torch.no_grad()
    def worth(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N,) of the states `x` at time t."""
        return self._of(x, t, prompts).float()

    def _of(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        found = self.reward(x, t.expand(len(x)), [self.texts[name] for name in prompts])
        if found.shape != (len(x),):
            raise PolicyError(
                f"policy.push.reward={self.config.reward!r} returned {tuple(found.shape)} for {len(x)} states; "
                f"expected ({len(x)},)"
            )
        return found


def aids(config: Any, requests: Sequence[Request], greedy: bool) -> tuple[float | None, Push | None]:
    """What helps rollouts and not evaluation: the tail behind the last noise, and the push."""
    if greedy:
        return None, None
    push = config.push and Push(config.push, {request.prompt.id: request.prompt.text for request in requests})
    return config.tail, push
