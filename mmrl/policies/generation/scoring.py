"""The module that is trained: a generator's transformers behind a forward that returns one number per denoising step.

What enters travels in plain dataclasses: wrappers that cast float inputs to a training precision leave those
alone, and the sampler's arithmetic stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.policies import adapters
from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.sde import gaussian_kl, mean_square, sde_step, transition_log_prob
from mmrl.policies.sharding import is_sharded


@dataclass
class Transitions:
    """N denoising steps to score.

    x, x_next  (N, ...) the state before and after; mean_old: the mean it was drawn around, where kept
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

    def rows(self, rows: Tensor) -> Transitions:
        mean_old = None if self.mean_old is None else self.mean_old[rows]
        return Transitions(
            self.x[rows], self.x_next[rows], self.t[rows], self.t_next[rows], self.t_first[rows], mean_old
        )


@dataclass(frozen=True)
class Scoring:
    """How a step is drawn and scored: one object for rollout and training, so that they cannot differ.

    kind, level  the sampler (`mmrl.policies.generation.sde`)
    reduction, normalised  of the log-prob; kl: how the KL to the reference is measured
    """

    kind: str
    level: float
    reduction: str = "mean"
    normalised: bool = True
    kl: str = "exact"


class Denoiser(nn.Module):
    """A generator's transformers, possibly with PEFT adapters, that score denoising steps.

    generator  how its pipeline asks them
    modules    the trained components of the pipeline by name: one, or the two experts of Wan 2.2
    chunk      states in one call of a transformer
    autocast   dtype of matrix products on top of the weights' dtype, None to follow the weights
    """

    partial_forwards = ("velocity", "within")
    transformer: Any

    def __init__(
        self, generator: Generator, modules: Mapping[str, nn.Module], *, chunk: int = 16,
        autocast: torch.dtype | None = None,
    ):  # fmt: skip
        super().__init__()
        self.generator, self.names = generator, tuple(modules)
        for name, module in modules.items():
            self.add_module(name, module)
        self.chunk = chunk
        self.autocast = autocast

    @property
    def trained(self) -> dict[str, Any]:
        """The transformers by name."""
        return {name: getattr(self, name) for name in self.names}

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks that accelerate shards one by one."""
        return list(self.transformer._no_split_modules)

    def forward(
        self,
        steps: Transitions,
        conditioned: Conditioned,
        scoring: Scoring,
        asked: frozenset[str] = frozenset({"log_probs"}),
        reference: Mapping[str, nn.Module] | None = None,
    ) -> dict[str, Tensor]:
        """`{probe: (N,) float32}` for N steps, in chunks, in one call of the wrapped module.

        asked      "log_probs", "mean_shift" (mean move since the rollout, (mu - mu_old)^2 / 2 std^2) and
                   "reference_kl"
        reference  frozen copies to measure the KL to; without them the adapters are switched off
        """
        chunks = self._chunks(steps.t, conditioned)
        if torch.is_grad_enabled() and is_sharded(self):
            self._check_calls(len(chunks), len(steps))
        parts = [self._score(steps.rows(r), conditioned.rows(r), scoring, asked, reference) for r in chunks]
        scores = {name: _restored([part[name] for part in parts], chunks) for name in parts[0]}
        if torch.is_grad_enabled() and len(self.names) > 1:
            scores["log_probs"] = scores["log_probs"] + self._untouched()
        return scores

    def _score(
        self, steps: Transitions, conditioned: Conditioned, scoring: Scoring, asked: frozenset[str],
        reference: Mapping[str, nn.Module] | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        velocity = self._guided(self.trained, steps.x, steps.t, conditioned)
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
            with torch.no_grad(), self.reference_weights(reference) as modules:
                base = self._guided(modules, steps.x, steps.t, conditioned)
            # the difference stays outside no_grad: inside, the penalty would have no gradient
            if scoring.kl == "velocity_mse":
                scores["reference_kl"] = mean_square(velocity, base)
            else:
                base_mean = sde_step(scoring.kind, base, steps.x, *times).mean
                scores["reference_kl"] = gaussian_kl(mean, base_mean, std, steps.t - steps.t_next, scoring.kl)
        return scores

    def velocity(self, x: Tensor, t: Tensor, conditioned: Conditioned) -> Tensor:
        """(N, ...) float32 velocity at `x (N, ...)`, times `t (N,)`, with guidance; for sampling."""
        chunks = self._chunks(t, conditioned)
        return _restored([self._guided(self.trained, x[r], t[r], conditioned.rows(r)) for r in chunks], chunks)

    def within(self, function: Callable[[], Any]) -> Any:
        """Call what runs parts of this module itself, as a pass of it: the pipeline's own call, when it is checked."""
        with self._precision():
            return function()

    @contextmanager
    def reference_weights(self, copies: Mapping[str, nn.Module] | None = None) -> Iterator[Mapping[str, nn.Module]]:
        """The transformers as they were when training began."""
        if copies is not None:
            yield copies
            return
        with ExitStack() as stack:
            for module in self.trained.values():
                if not adapters.is_adapted(module):
                    raise PolicyError("full fine-tuning has no reference without a frozen copy of the starting weights")
                stack.enter_context(adapters.reference_adapter(module))
            yield self.trained

    def _guided(self, modules: Mapping[str, Any], x: Tensor, t: Tensor, conditioned: Conditioned) -> Tensor:
        given, negative = conditioned.listed()
        with self._precision():
            return self.generator.velocity(modules, x, t, given, negative)

    def _precision(self) -> AbstractContextManager[Any]:
        device = next(self.parameters()).device.type
        return nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)

    def _chunks(self, t: Tensor, conditioned: Conditioned) -> list[Tensor]:
        """Rows that can share a call: of one form and one expert, at most `chunk` of them."""
        generator = self.generator
        forms = [generator.form(each) for each in conditioned.given]
        if conditioned.negative is not None:
            forms = [(a, generator.form(b)) for a, b in zip(forms, conditioned.negative, strict=True)]
        experts = [generator.expert(clock) for clock in generator.clock(t).tolist()]
        groups: dict[Any, list[int]] = {}
        for row, (prompt, expert) in enumerate(zip(conditioned.index.tolist(), experts, strict=True)):
            groups.setdefault((forms[prompt], expert), []).append(row)
        return [chunk for rows in groups.values() for chunk in torch.tensor(rows).split(self.chunk)]

    def _check_calls(self, calls: int, rows: int) -> None:
        """Ranks that hold shards gather them at every call, so all must make equally many."""
        if calls > -(-rows // self.chunk):
            raise PolicyError(
                f"{rows} steps need {calls} calls of the transformer, since they differ in their expert or in the form "
                "of their conditions, and ranks that hold its weights in shards must make equally many; train without "
                "FSDP, or with prompts of one form"
            )

    def _untouched(self) -> Tensor:
        """0, by way of every trained weight: DDP waits for gradients of the expert that scored nothing too."""
        return sum((p.sum() * 0.0 for p in self.parameters() if p.requires_grad), torch.zeros(()))  # type: ignore[return-value]


def _restored(parts: list[Tensor], chunks: list[Tensor]) -> Tensor:
    """Rows of the parts in the order they had before they were chunked."""
    order = torch.cat(chunks)
    joined = torch.cat(parts)
    if torch.equal(order, torch.arange(len(order))):
        return joined
    return joined[torch.argsort(order).to(joined.device)]
