"""Is a generator its pipeline? A few steps of the pipeline's own call, and ours at the same states and times.

Before anything trains, the velocity through a family must be the one that the pipeline hands its scheduler; if it
is not, the pipeline's own call is replayed in its place (`swap`), and if that is not equal either, the model is
refused with the numbers. A guidance, sign, packing or mask that is off would otherwise train on, silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.generation.families.asking import call_defaults
from mmrl.policies.generation.families.base import SEED, Generator, moved, weights_dtype
from mmrl.policies.generation.families.capture import twin_of
from mmrl.policies.generation.families.swap import Swapped

STEPS = 3
"""Enough for both experts of Wan 2.2, and for a step that is neither first nor last."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest relative difference, by the dtype of products: pipelines round times and states to the dtype of their
weights, we do not, and call both branches of their guidance in one. On a CPU in float32 it is below 1e-5; TF32
convolutions of a GPU are the rest."""

MEDIA = re.compile(r"(^|_)(image|images|mask|video|audio)(_|$)(?!.*(embeds|latents|crop|scale))")
TEXT = re.compile(r"embeds|attention|adapter")


@dataclass
class Watched:
    """What a pipeline's own call did.

    times   (S + 1,) of its scheduler
    states  S states before each step, velocities S answers to them
    result  what the call returned, where it was not stopped
    """

    times: Tensor
    states: list[Tensor]
    velocities: list[Tensor]
    result: Any


@dataclass(frozen=True)
class Verdict:
    """What the check found; written into the run.

    path  "family", or "swap" where the pipeline's own call is replayed
    gap   largest relative difference of a velocity from the pipeline's
    note  how sampling differs from the pipeline's call; empty where it does not
    """

    pipeline: str
    family: str
    path: str
    gap: float
    tolerance: float
    times: tuple[float, ...]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        way = self.family if self.path == "family" else "its own call replayed (exact, slower)"
        note = f"; {self.note}" if self.note else ""
        return f"{self.pipeline} through {way}: velocity within {self.gap:.1e} of the pipeline's{note}"


def products_dtype(modules: Mapping[str, Any]) -> torch.dtype:
    """Of the transformers' matrix products here and now: autocast's (`policy.autocast`), else their weights'."""
    module = next(iter(modules.values()))
    device = next(module.parameters()).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights_dtype(module)


@torch.no_grad()
def watch(
    generator: Generator, prompt: str, media: Sequence[Any] = (), *, steps: int = STEPS, output: str = "latent"
) -> Watched:  # fmt: skip
    """The pipeline's own call, noted step by step; whatever its scheduler, it takes Euler steps on its times."""
    twin = twin_of(generator.pipeline, generator.parts(generator.asked.guided))
    scheduler = twin.scheduler
    seen = Watched(torch.empty(0), [], [], None)

    def step(
        model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

        if getattr(scheduler, "sigmas", None) is None:
            raise PolicyError(f"{type(scheduler).__name__} has no sigmas: it is no flow-matching scheduler")
        at, seen.times = len(seen.states), scheduler.sigmas.float().cpu().clone()
        seen.states.append(sample.float().clone())
        seen.velocities.append(model_output.float().clone())
        after = (sample.float() + (seen.times[at + 1] - seen.times[at]) * model_output).to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=after) if return_dict else (after,)

    scheduler.step = step
    call = generator.request(prompt, media) | {"num_inference_steps": steps, "output_type": output}
    seen.result = twin(**call, generator=torch.Generator().manual_seed(SEED))
    if not seen.states:
        raise PolicyError(f"{type(generator.pipeline).__name__} never stepped its scheduler; is it a flow pipeline?")
    return seen


@torch.no_grad()
def velocity_gap(
    generator: Generator, seen: Watched, prompt: str, media: Sequence[Any], modules: Mapping[str, Any]
) -> float:
    """The largest relative difference of a step's velocity, at the pipeline's own states."""
    device = seen.states[0].device
    given = moved(generator.conditions(prompt, media), device)
    negatives = None
    if generator.asked.guided and not generator.guides_itself:
        negatives = [moved(generator.negative(media), device)]
    times = generator.schedule(len(seen.states), media)
    if not torch.equal(times, seen.times):
        ours, theirs = ([round(t, 4) for t in each.tolist()] for each in (times, seen.times))
        raise PolicyError(f"its times are {ours}, those of the call {theirs}")
    gaps = []
    for state, answer, t in zip(seen.states, seen.velocities, times, strict=False):
        x, expected = generator.moving(state), generator.moving(answer)
        if tuple(x.shape[1:]) != generator.state_shape():
            raise PolicyError(f"its state is {generator.state_shape()}, that of the call {tuple(x.shape[1:])}")
        if not bool(expected.isfinite().all()):
            raise PolicyError("the pipeline's own velocity has values that are nan or infinite: are its weights whole?")
        found = generator.velocity(modules, x, t[None].to(device), [given], negatives)
        gaps.append(((found - expected).norm() / expected.norm()).item())
    return max(gaps)


def checked(
    generator: Generator, prompt: str, media: Sequence[Any], modules: Mapping[str, Any]
) -> tuple[Generator, Verdict]:
    """The generator if it is its pipeline, else the one that replays the pipeline's call; or a refusal."""
    pipeline = generator.pipeline
    tolerance = TOLERANCE.get(products_dtype(modules), TOLERANCE[torch.bfloat16])
    tried: list[str] = []
    candidates = [generator] if isinstance(generator, Swapped) else [generator, None]
    for candidate in candidates:
        try:
            made = candidate or Swapped(pipeline, generator.asked, like=generator)
            seen = watch(made, prompt, media)
            gap = velocity_gap(made, seen, prompt, media, modules)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a pipeline that nobody here knows may raise
            said = (str(error).splitlines() or ["no message"])[0]
            tried.append(f"{_name(candidate)} cannot run it ({type(error).__name__}: {said})")
            continue
        if gap <= tolerance:
            path = "swap" if isinstance(made, Swapped) else "family"
            times = tuple(round(t, 4) for t in seen.times.tolist())
            note = "; ".join(filter(None, (*tried, made.sampler_note())))
            return made, Verdict(type(pipeline).__name__, type(made).__name__, path, gap, tolerance, times, note)
        tried.append(f"{_name(candidate)} is {gap:.1e} off the pipeline's velocity")
    ran = any("off the pipeline's velocity" in each for each in tried)
    hint = f"; the tolerance is {tolerance:g}. Options that depend on the number of the step cannot be replayed"
    raise PolicyError(
        f"{type(pipeline).__name__} cannot be trained: {'; '.join(tried)}{hint if ran else ''}"
        f"{_not_given(generator, prompt, media)}"
    )


def _not_given(generator: Generator, prompt: str, media: Sequence[Any]) -> str:
    """What the pipeline's call takes in pictures, masks and sounds, and mmrl has no column for."""
    given, call = generator.request(prompt, media), call_defaults(generator.pipeline)
    names = [
        name for name, default in call.items()
        if MEDIA.search(name) and not TEXT.search(name) and name not in given and default is None
    ]  # fmt: skip
    return f"; its call takes {', '.join(names)}, which it was not given" if names else ""


def _name(candidate: Generator | None) -> str:
    return "its replayed call" if candidate is None or isinstance(candidate, Swapped) else type(candidate).__name__
