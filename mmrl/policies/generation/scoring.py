"""The module that is trained: an SD3-family transformer whose forward returns one number per denoising step.

What enters travels in plain dataclasses: wrappers that cast float inputs to a training precision leave those
alone, and the sampler's arithmetic stays float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.policies import adapters
from mmrl.policies.generation.sde import gaussian_kl, mean_square, sde_step, transition_log_prob

TIMESTEPS = 1000.0
"""The transformer's time input is 1000 t."""


@dataclass
class Text:
    """What the transformer is conditioned on. Rows of `index (N,)` point into P prompts.

    embeds   (P, L, D), pooled (P, Q)
    negative_embeds (1, L, D), negative_pooled (1, Q): the unconditional prompt, None at guidance 1
    """

    embeds: Tensor
    pooled: Tensor
    index: Tensor
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None

    def rows(self, rows: slice) -> Text:
        return Text(self.embeds, self.pooled, self.index[rows], self.negative_embeds, self.negative_pooled)


@dataclass
class Transitions:
    """N denoising steps to score.

    x, x_next  (N, C, H, W) the state before and after; mean_old: the mean it was drawn around, where kept
    t, t_next, t_first  (N,) times of the step, and the second time of its schedule
    """

    x: Tensor
    x_next: Tensor
    t: Tensor
    t_next: Tensor
    t_first: Tensor
    mean_old: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rows: slice) -> Transitions:
        mean_old = None if self.mean_old is None else self.mean_old[rows]
        return Transitions(
            self.x[rows], self.x_next[rows], self.t[rows], self.t_next[rows], self.t_first[rows], mean_old
        )


@dataclass(frozen=True)
class Scoring:
    """How a step is drawn and scored: one object for rollout and training, so that they cannot differ.

    kind, level  the sampler (`mmrl.policies.generation.sde`)
    guidance     classifier-free guidance scale; at 1 the unconditional pass is skipped
    reduction, normalised  of the log-prob; kl: how the KL to the reference is measured
    """

    kind: str
    level: float
    guidance: float
    reduction: str = "mean"
    normalised: bool = True
    kl: str = "exact"


class Denoiser(nn.Module):
    """A velocity model, possibly with PEFT adapters, that scores denoising steps.

    chunk     latents in one call of the transformer
    autocast  dtype of matrix products on top of the weights' dtype, None to follow the weights
    """

    partial_forwards = ("velocity",)

    def __init__(self, transformer: nn.Module, *, chunk: int = 16, autocast: torch.dtype | None = None):
        super().__init__()
        self.transformer = transformer
        self.chunk = chunk
        self.autocast = autocast

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks that accelerate shards one by one."""
        return list(self.transformer._no_split_modules)

    def forward(
        self,
        steps: Transitions,
        text: Text,
        scoring: Scoring,
        asked: frozenset[str] = frozenset({"log_probs"}),
        reference: nn.Module | None = None,
    ) -> dict[str, Tensor]:
        """`{probe: (N,) float32}` for N steps, in chunks, in one call of the wrapped module.

        asked      "log_probs", "mean_shift" (mean move since the rollout, (mu - mu_old)^2 / 2 std^2) and
                   "reference_kl"
        reference  frozen copy to measure the KL to; without one the adapters are switched off
        """
        parts = [self._score(steps.rows(r), text.rows(r), scoring, asked, reference) for r in self._chunks(len(steps))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _score(
        self, steps: Transitions, text: Text, scoring: Scoring, asked: frozenset[str], reference: nn.Module | None
    ) -> dict[str, Tensor]:
        velocity = self._guided(self.transformer, steps.x, steps.t, text, scoring.guidance)
        times = (steps.t, steps.t_next, scoring.level, steps.t_first)
        mean, std = sde_step(scoring.kind, velocity, steps.x, *times)
        log_probs = transition_log_prob(steps.x_next, mean, std, scoring.reduction, scoring.normalised)
        if log_probs is None:
            raise PolicyError(f"the {scoring.kind} sampler at level {scoring.level} draws no noise: nothing to train")
        scores = {"log_probs": log_probs}
        if "mean_shift" in asked:
            assert steps.mean_old is not None
            scores["mean_shift"] = mean_square(mean, steps.mean_old) / (2 * std**2)
        if "reference_kl" in asked:
            with torch.no_grad(), self.reference_weights(reference) as transformer:
                base = self._guided(transformer, steps.x, steps.t, text, scoring.guidance)
            # the difference stays outside no_grad: inside, the penalty would have no gradient
            if scoring.kl == "velocity_mse":
                scores["reference_kl"] = mean_square(velocity, base)
            else:
                base_mean = sde_step(scoring.kind, base, steps.x, *times).mean
                scores["reference_kl"] = gaussian_kl(mean, base_mean, std, steps.t - steps.t_next, scoring.kl)
        return scores

    def velocity(self, x: Tensor, t: Tensor, text: Text, guidance: float) -> Tensor:
        """(N, C, H, W) float32 velocity at `x (N, C, H, W)`, times `t (N,)`, with guidance; for sampling."""
        parts = [self._guided(self.transformer, x[r], t[r], text.rows(r), guidance) for r in self._chunks(len(x))]
        return torch.cat(parts)

    @contextmanager
    def reference_weights(self, copy: nn.Module | None = None) -> Iterator[nn.Module]:
        """The transformer as it was when training began."""
        if copy is not None:
            yield copy
            return
        if not adapters.is_adapted(self.transformer):
            raise PolicyError("full fine-tuning has no reference without a frozen copy of the starting weights")
        with adapters.reference_adapter(self.transformer):
            yield self.transformer

    def _guided(self, transformer: nn.Module, x: Tensor, t: Tensor, text: Text, guidance: float) -> Tensor:
        """v_u + w (v_c - v_u), the unconditional v_u without gradient; v_c alone at w = 1."""
        conditional = self._call(transformer, x, t, text.embeds[text.index], text.pooled[text.index])
        if guidance == 1:
            return conditional
        assert text.negative_embeds is not None and text.negative_pooled is not None
        with torch.no_grad():
            embeds = text.negative_embeds.expand(len(x), -1, -1)
            unconditional = self._call(transformer, x, t, embeds, text.negative_pooled.expand(len(x), -1))
        return unconditional + guidance * (conditional - unconditional)

    def _call(self, transformer: Any, x: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
        dtype = next(transformer.parameters()).dtype
        with self._precision(x):
            velocity = transformer(
                hidden_states=x.to(dtype),
                timestep=TIMESTEPS * t,
                encoder_hidden_states=embeds.to(dtype),
                pooled_projections=pooled.to(dtype),
                return_dict=False,
            )[0]
        return velocity.float()

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)

    def _chunks(self, rows: int) -> list[slice]:
        return [slice(start, min(start + self.chunk, rows)) for start in range(0, rows, self.chunk)]
