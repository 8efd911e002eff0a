"""What a configuration asks of a pipeline, and the media a prompt conditions it on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from mmrl.errors import ConfigError, PolicyError, unknown
from mmrl.policies.images import open_image
from mmrl.record import Prompt

CONDITION = "condition"
"""The role of an image part that a generator is conditioned on. A part without a role has it too."""

FRAMES = ("num_frames", "frames")
"""What calls name the number of frames of a clip."""


@dataclass(frozen=True)
class Asked:
    """How every output of a run is asked for. None leaves a value to the pipeline.

    height, width, frames  of an output; frames for video only
    guidance    scale of classifier-free guidance, by the pipeline's own formula; up to 1 it is off
    guidance_2  that of the second expert (Wan 2.2); None: the same
    embedded    guidance that the model takes as an input (FLUX.1-dev, FLUX.2-dev, HunyuanVideo)
    negative    text of the unconditional pass
    through     that pass has a gradient too
    options     further arguments of the pipeline's call, by its own names
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    guidance: float = 1.0
    guidance_2: float | None = None
    embedded: float | None = None
    negative: str = ""
    through: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guided(self) -> bool:
        return self.guidance > 1


@dataclass(frozen=True)
class Size:
    """Of one output: pixels and frames (1 for images)."""

    height: int
    width: int
    frames: int = 1


@contextmanager
def guided_as(generator: Any, scale: float | None) -> Iterator[None]:
    """A generator that is asked under another guidance; None: under its own."""
    own = generator.asked
    if scale is not None and scale != own.guidance and generator.guides_itself:
        raise PolicyError(
            f"{type(generator.pipeline).__name__} is replayed as a whole, guidance included, so it has no other; set "
            "policy.eval_guidance=null"
        )
    generator.asked = own if scale is None else replace(own, guidance=scale, guidance_2=None)
    try:
        yield
    finally:
        generator.asked = own


def call_defaults(pipeline: Any) -> dict[str, Any]:
    """The arguments of the pipeline's call and their defaults; None where there is none."""
    return dict(_defaults_of(type(pipeline).__call__))


@cache
def _defaults_of(call: Callable[..., Any]) -> dict[str, Any]:
    """Read once for a class: every output asks for its rate of frames."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def check_options(pipeline: Any, options: Mapping[str, Any], reserved: Sequence[str]) -> None:
    """Refuse arguments that the pipeline does not have, and those that other settings give."""
    known = call_defaults(pipeline)
    for name in options:
        if name in reserved:
            raise ConfigError(f"pipeline_options.{name}: this is set by the policy's own settings; leave it out here")
        if name not in known:
            free = [n for n in known if n not in reserved]
            raise ConfigError(f"pipeline_options: {unknown(f'argument of {type(pipeline).__name__}', name, free)}")


def chosen_size(pipeline: Any, asked: Asked, *, side: int, stride: int | None, own: int | None = None) -> Size:
    """The size asked for, or the pipeline's own, within its limits.

    side    both sides are multiples of it
    stride  frames are 1 more than a multiple of it; None: an image
    own     the pipeline's own sides, where they stand in its code only
    """
    defaults = call_defaults(pipeline)
    sides = {name: getattr(asked, name) or own or _own_side(pipeline, defaults, name) for name in ("height", "width")}
    for name, value in sides.items():
        if value % side:
            nearest = max(1, round(value / side)) * side
            raise ConfigError(f"{name}={value}: expected a multiple of {side}; the nearest is {nearest}")
    if stride is None:
        if asked.frames is not None:
            raise ConfigError(
                f"frames={asked.frames}: {type(pipeline).__name__} takes no number of frames; leave frames out"
            )
        return Size(sides["height"], sides["width"])
    frames = asked.frames or next((defaults[name] for name in FRAMES if defaults.get(name) is not None), None)
    if frames is None:
        raise ConfigError(f"frames: {type(pipeline).__name__} has no default; set policy.frames")
    if (frames - 1) % stride:
        nearest = round((frames - 1) / stride) * stride + 1
        raise ConfigError(f"frames={frames}: expected 1 more than a multiple of {stride}; the nearest is {nearest}")
    return Size(sides["height"], sides["width"], frames)


def _own_side(pipeline: Any, defaults: Mapping[str, Any], name: str) -> int:
    if defaults.get(name) is not None:
        return int(defaults[name])
    sample, factor = getattr(pipeline, "default_sample_size", None), getattr(pipeline, "vae_scale_factor", None)
    if isinstance(sample, int) and isinstance(factor, int):
        return sample * factor
    raise ConfigError(f"{name}: {type(pipeline).__name__} has no default size; set policy.height and policy.width")


def condition_media(prompt: Prompt) -> tuple[Any, ...]:
    """The images a prompt conditions a generator on, opened, in the order of their parts."""
    if prompt.videos:
        raise PolicyError(f"prompt {prompt.id!r} has videos; generators are conditioned on images only")
    roles = [
        part.get("role", CONDITION)
        for message in prompt.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") == "image"
    ]
    if not roles:  # images without a marked place: all of them condition
        roles = [CONDITION] * len(prompt.images)
    if len(roles) != len(prompt.images):
        raise PolicyError(
            f"prompt {prompt.id!r} has {len(prompt.images)} image(s) but its messages have {len(roles)} image part(s)"
        )
    if odd := [role for role in roles if role != CONDITION]:
        raise PolicyError(f"prompt {prompt.id!r}: {unknown('role of an image part', odd[0], (CONDITION,))}")
    return tuple(open_image(image, prompt) for image in prompt.images)
