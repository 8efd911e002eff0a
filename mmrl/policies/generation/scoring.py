"""The module that is trained: a generator's transformers behind a forward that returns one number per state.

What enters travels in plain dataclasses: wrappers that cast float inputs to a training precision leave those
alone, and the sampler's arithmetic stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.policies import adapters
from mmrl.policies.generation.calls import Calls
from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.likelihoods.base import Predictions, States
from mmrl.policies.generation.prompt_cache import PromptCache
from mmrl.policies.generation.reuse import Blocks
from mmrl.policies.sharding import is_sharded
from mmrl.stages import Need

Copies = Mapping[str, nn.Module] | None
"""The transformers by name with other weights; None where their adapters are switched instead."""
Score = Callable[[Any, Predictions, Sequence[Need]], dict[str, Tensor]]
"""What a likelihood makes of predictions: `Likelihood.score`."""


class Denoiser(nn.Module):
    """A generator's transformers, possibly with PEFT adapters, that score states of denoising.

    generator  how its pipeline asks them
    modules    the trained components of the pipeline by name: one, or the two experts of Wan 2.2
    chunk      states in one call of a transformer
    autocast   dtype of matrix products on top of the weights' dtype, None to follow the weights
    calls      counts what goes through them
    """

    partial_forwards = ("velocity", "within")
    transformer: Any

    def __init__(
        self, generator: Generator, modules: Mapping[str, nn.Module], *, chunk: int = 16,
        autocast: torch.dtype | None = None, calls: Calls | None = None,
    ):  # fmt: skip
        super().__init__()
        self.calls = calls or Calls()
        self.generator, self.names = generator, tuple(modules)
        for name, module in modules.items():
            self.add_module(name, module)
        self.chunk = chunk
        self.autocast = autocast
        self.blocks: Blocks | None = None
        self.prompts: PromptCache | None = None

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
        states: States,
        conditioned: Conditioned,
        score: Score,
        asked: Sequence[Need] = (),
        others: Mapping[str, Copies] | None = None,
    ) -> dict[str, Tensor]:
        """`{"log_probs" or Need.key: (N,) float32}` for N states, in chunks, in one call of the wrapped module.

        score   what is made of the predictions
        others  copies with other weights that it compares with, "reference" and "anchor"; without a copy the
                adapters are switched
        """
        chunks = self._chunks(states.t, conditioned)
        if torch.is_grad_enabled() and is_sharded(self):
            self._check_calls(len(chunks), len(states))
        parts = []
        for rows in chunks:
            some = states.rows(rows)
            parts.append(score(some, Predicting(self, some, conditioned.rows(rows), others or {}), asked))
        scores = {name: _restored([part[name] for part in parts], chunks) for name in parts[0]}
        if torch.is_grad_enabled() and len(self.names) > 1:
            scores["log_probs"] = scores["log_probs"] + self._untouched()
        return scores

    def velocity(
        self, x: Tensor, t: Tensor, conditioned: Conditioned, *, again: bool | None = None,
        threshold: float | None = None, text: bool | None = None, without: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, ...) float32 velocity at `x (N, ...)`, times `t (N,)`, with guidance; for sampling.

        again      True: with what the later blocks found for these rows in the step before; False: keep what they
                   find; None: neither
        threshold  of the rows that are asked again: see `ReuseConfig`
        text       the same as `again`, of what the blocks take from the text
        without    (N, ...) to be filled with what the unconditional pass finds
        """
        if text is not None:
            self.prompts = self.prompts or PromptCache(self.trained)
            with self.prompts.step(text):
                return self.velocity(x, t, conditioned, again=again, threshold=threshold, without=without)
        chunks = self._chunks(t, conditioned)

        def run(rows: Tensor) -> Tensor:
            noted = None if without is None else partial(without.__setitem__, rows)
            return self._guided(self.trained, x[rows], t[rows], conditioned.rows(rows), noted=noted)

        if again is None:
            return _restored([run(rows) for rows in chunks], chunks)
        self.blocks = self.blocks or Blocks(self.trained)
        again = again and self.blocks.knows(map(self.generator.expert, self.generator.clock(t).tolist()))
        return _restored(self.blocks.velocities(run, chunks, self.calls, again=again, threshold=threshold), chunks)

    def within(self, function: Callable[[], Any]) -> Any:
        """Call what runs parts of this module itself, as a pass of it: the pipeline's own call, when it is checked."""
        with self._precision():
            return function()

    @contextmanager
    def other_weights(self, name: str, copies: Copies = None) -> Iterator[Mapping[str, Any]]:
        """The transformers as they were when training began ("reference"), or with the adapters of this name."""
        if copies is not None:
            yield copies
            return
        with ExitStack() as stack:
            for module in self.trained.values():
                if not adapters.is_adapted(module):
                    raise PolicyError(f"full fine-tuning has no {name} weights without a frozen copy of them")
                stack.enter_context(adapters.other_adapter(module, name))
            yield self.trained

    def _guided(
        self, modules: Mapping[str, Any], x: Tensor, t: Tensor, conditioned: Conditioned, *,
        known: Tensor | None = None, noted: Callable[[Tensor], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """known: what the unconditional pass finds here, where somebody knows it; noted: told of it, where wanted"""
        generator = self.generator
        given, negative = conditioned.listed()
        if not generator.asked.guided:  # negatives may be there for a reference that is guided
            negative = None
        self.calls.add(len(x), 2 if generator.asked.guided else 1, reused=known is not None)
        with self._precision():
            if known is None and noted is None:
                return generator.velocity(modules, x, t, given, negative)
            velocity, without = generator.branches(modules, x, t, given, None if known is not None else negative)
            without = known if without is None else without
            assert without is not None
            if noted is not None:
                noted(without)
            return generator.guided(velocity, without, t)

    def guided_by(
        self, modules: Mapping[str, Any], x: Tensor, t: Tensor, conditioned: Conditioned, scale: float
    ) -> Tensor:
        """(N, ...) velocity under a guidance scale that is not the rollouts'; up to 1 there is none."""
        generator = self.generator
        if generator.guides_itself and (generator.asked.guided or scale > 1):
            raise PolicyError(
                f"{type(generator.pipeline).__name__} is replayed as a whole, guidance included, so its velocity "
                "has no other; set policy.guidance_scale=1 and policy.reference_guidance=1"
            )
        given, negative = conditioned.listed()
        self.calls.add(len(x))
        with self._precision():
            velocity = generator.velocity(modules, x, t, given, None)
            if scale <= 1:
                return velocity
            assert negative is not None
            self.calls.add(len(x))
            return generator.guide(velocity, generator.velocity(modules, x, t, negative, None), scale)

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


class Predicting:
    """The predictions of one chunk: `mmrl.policies.generation.likelihoods.base.Predictions`."""

    def __init__(self, denoiser: Denoiser, states: States, conditioned: Conditioned, others: Mapping[str, Copies]):
        self.denoiser, self.others = denoiser, others
        self._at = states.x, states.t, conditioned
        self._without: Tensor | None = getattr(states, "without", None)

    def current(self, *, guided: bool) -> Tensor:
        if guided:
            return self.denoiser._guided(self.denoiser.trained, *self._at, known=self._without)
        return self.denoiser.guided_by(self.denoiser.trained, *self._at, 1.0)

    @torch.no_grad()
    def of(self, weights: str, *, guided: bool, guidance: float = 1.0) -> Tensor:
        with self.denoiser.other_weights(weights, self.others.get(weights)) as modules:
            if guided:
                return self.denoiser._guided(modules, *self._at)
            return self.denoiser.guided_by(modules, *self._at, guidance)


def _restored(parts: list[Tensor], chunks: list[Tensor]) -> Tensor:
    """Rows of the parts in the order they had before they were chunked."""
    order = torch.cat(chunks)
    joined = torch.cat(parts)
    if torch.equal(order, torch.arange(len(order))):
        return joined
    return joined[torch.argsort(order).to(joined.device)]
