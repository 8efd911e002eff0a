"""A generator family: what a diffusers pipeline asks its transformer, and what the answer means.

Everything here is shared. A family is a subclass in a file of its own that overrides the hooks in which its pipeline
differs, each of one to three lines; `mmrl.policies.generation.families` finds it by the class of the pipeline.

    state    one row of what moves: exactly the numbers that denoising changes, so log-probs are means over them
    time     t from 1 (noise) to 0, as the pipeline sets its scheduler
    velocity noise - clean, float32, whatever the sign and form of the transformer's output
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError, PolicyError
from mmrl.media import Film, Sound
from mmrl.policies.generation.families.asking import (
    FRAMES,
    Asked,
    Size,
    call_defaults,
    check_options,
    chosen_size,
)
from mmrl.policies.generation.families.capture import first_call
from mmrl.policies.generation.families.outputs import as_images, as_videos, film_pixels, picture_pixels

SEED = 0
"""Of what a pipeline draws while it prepares (LTX-Video samples the latents of its first frame)."""
PLAIN_PROMPT = "a picture"

Conditions = dict[str, Any]
"""What the transformer reads besides state and time. Tensors begin with 1, the row, but for a family's `shared`
ones; names with `_` are the family's own and never reach the transformer."""

ATTENTION_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
"""Attention projections as diffusers names them: the LoRA targets of the published recipes."""

HALF = (torch.bfloat16, torch.float16)


class Generator:
    """One pipeline, asked in one way."""

    names: ClassVar[tuple[str, str]] = ("hidden_states", "timestep")
    """Of the transformer's state and time inputs."""
    order: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep")
    """Names of positional arguments, where the pipeline gives some."""
    modules: ClassVar[tuple[str, ...]] = ("transformer",)
    """Components that are trained."""
    scale: ClassVar[str] = "guidance_scale"
    """The pipeline's argument for classifier-free guidance; empty where it has none."""
    reads_negative: ClassVar[bool] = True
    """Whether the pipeline takes a negative prompt."""
    unguided: ClassVar[float] = 1.0
    """Its value for one conditional pass."""
    embeds_guidance: ClassVar[bool] = False
    """Whether the model takes `guidance_scale` as an input, beside `scale`."""
    shared: ClassVar[frozenset[str]] = frozenset()
    """Tensors that belong to no row."""
    ragged: ClassVar[bool] = False
    """Whether texts of unequal length share a forward."""
    images: ClassVar[tuple[int, int]] = (0, 0)
    """Fewest and most condition images."""
    video: ClassVar[bool] = False
    fps: ClassVar[float] = 16.0
    """Frames a second that its published models were trained at."""
    guides_itself: ClassVar[bool] = False
    """Whether its velocity is guided already, so that no negatives are given."""
    checkpointing: ClassVar[str | None] = None
    """Why gradient checkpointing changes this transformer's numbers; None where it does not."""

    def __init__(self, pipeline: Any, asked: Asked = Asked()):  # noqa: B008 (immutable)
        check_options(pipeline, asked.options, self.reserved())
        self._check_guidance(pipeline, asked)
        self.pipeline, self.asked = pipeline, asked
        self.size = self.sized()
        self._clocks: dict[float, float] = {}

    # -- what a family says --------------------------------------------------------------------------------------

    def side(self) -> int:
        """Height and width are multiples of it."""
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config.get("patch_size", 1)

    def stride(self) -> int | None:
        """Frames are 1 more than a multiple of it; None for images."""
        return None

    def own_side(self) -> int | None:
        """The pipeline's default height and width, where neither its call nor `default_sample_size` says it."""
        return None

    def state_shape(self) -> tuple[int, ...]:
        """Of one row's state."""
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.transformer.config.in_channels, self.size.height // factor, self.size.width // factor

    def targets(self, module: nn.Module) -> str | list[str]:
        """LoRA targets, as PEFT takes them."""
        return ATTENTION_LAYERS

    def arguments(self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False) -> dict[str, Any]:
        """How the pipeline is asked for one output; `negative`: for the conditions of the unconditional pass."""
        given: dict[str, Any] = {"prompt": prompt, "height": self.size.height, "width": self.size.width}
        if self.video:
            given["num_frames"] = self.size.frames
        if media:
            given["image"] = media[0] if self.images[1] == 1 else list(media)
        if self.embeds_guidance and self.asked.embedded is not None:
            given["guidance_scale"] = self.asked.embedded
        return given | dict(self.asked.options)

    def parts(self, guided: bool) -> dict[str, Any]:
        """Components to replace where guidance is a component, not an argument."""
        return {}

    def reference(self, raw: Tensor) -> Conditions:
        """What the pipeline adds to the state (1, ...): reference latents, a first frame."""
        return {}

    def enter(self, x: Tensor, own: Conditions) -> Any:
        """The transformer's state input, from `x (N, ...)`."""
        return x

    def leave(self, out: Any, x: Tensor) -> Tensor:
        """Noise - clean of the state, from the transformer's output."""
        return out

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        """The transformer's time input, from the scheduler's timesteps `clock (N,)`."""
        return clock

    def guide(self, given: Tensor, negative: Tensor, scale: float) -> Tensor:
        return negative + scale * (given - negative)

    def expert(self, clock: float) -> str:
        """The module that denoises at the scheduler's timestep."""
        return self.modules[0]

    def moving(self, latents: Tensor) -> Tensor:
        """The state inside the latents that the pipeline's scheduler steps."""
        return latents

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        """(N, 3, H, W) or (N, 3, F, H, W) in [-1, 1] of clean states `x (N, ...)`."""
        config = self.pipeline.vae.config
        return self.decoded(x / config.scaling_factor + (config.get("shift_factor") or 0.0))

    def clean(self, pixels: Tensor) -> Tensor:
        """(N, ...) states of outputs, shaped as `pixels` gives them: what it undoes, as far as the VAE lets it."""
        config = self.pipeline.vae.config
        return (self.encoded(pixels) - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    # -- shared --------------------------------------------------------------------------------------------------

    @classmethod
    def reserved(cls) -> tuple[str, ...]:
        """Arguments that settings give, or that the policy needs for itself."""
        sizes, guidance = ("height", "width", *FRAMES), ("guidance_scale", "guidance_scale_2", "true_cfg_scale")
        prompt = ("prompt", "negative_prompt", "image")
        run = ("num_inference_steps", "generator", "latents", "output_type", "return_dict", "sigmas", "timesteps")
        return (*prompt, *sizes, *guidance, *run)

    def sized(self) -> Size:
        return chosen_size(self.pipeline, self.asked, side=self.side(), stride=self.stride(), own=self.own_side())

    def _check_guidance(self, pipeline: Any, asked: Asked) -> None:
        if asked.guidance not in (0.0, 1.0) and asked.guidance < 1:
            raise ConfigError(
                f"guidance_scale={asked.guidance:g}: {type(pipeline).__name__} guides above 1 only; 1 switches it off"
            )
        if asked.guidance_2 is not None and sum(getattr(pipeline, n, None) is not None for n in self.modules) < 2:
            raise ConfigError(f"guidance_scale_2={asked.guidance_2:g}: {type(pipeline).__name__} has one transformer")
        if asked.embedded is None:
            return
        if not self.embeds_guidance or not pipeline.transformer.config.get("guidance_embeds", False):
            raise ConfigError(
                f"embedded_guidance={asked.embedded:g}: the transformer of this {type(pipeline).__name__} does not "
                "take guidance as an input; leave it null"
            )

    def request(self, prompt: str, media: Sequence[Any] = ()) -> dict[str, Any]:
        """The pipeline call that this generator stands for, guidance and negative prompt included."""
        given = self.arguments(prompt, media)
        if self.scale:
            given[self.scale] = self.asked.guidance if self.asked.guided else self.unguided
        if self.asked.guided:
            given |= {"negative_prompt": self.asked.negative} if self.reads_negative else {}
            given |= {} if self.asked.guidance_2 is None else {"guidance_scale_2": self.asked.guidance_2}
        return given

    def check_media(self, name: str, media: Sequence[Any]) -> None:
        """Refuse a prompt with too few or too many condition images."""
        low, high = self.images
        if low <= len(media) <= high:
            return
        span = f"{low}" if low == high else f"{low} to {high}"
        raise PolicyError(
            f"prompt {name!r} has {len(media)} condition image(s); {type(self.pipeline).__name__} takes {span}"
        )

    def conditions(
        self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False, steps: int = 2
    ) -> Conditions:
        """The arguments of the pipeline's own first transformer call, guidance off; nothing is denoised."""
        conditions, _ = self._captured(prompt, media, negative, steps)
        return conditions

    def negative(self, media: Sequence[Any] = ()) -> Conditions:
        return self.conditions(self.asked.negative, media, negative=True)

    def _captured(self, prompt: str, media: Sequence[Any], negative: bool, steps: int) -> tuple[Conditions, Any]:
        given = self.arguments(prompt, media, negative=negative)
        given |= {self.scale: self.unguided} if self.scale else {}
        given |= {
            "num_inference_steps": steps,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(SEED),
        }
        args, kwargs, scheduler = first_call(self.pipeline, self.modules, given, self.parts(False))
        read = {**dict(zip(self.order, args, strict=False)), **kwargs}
        raw = read.pop(self.names[0])
        for name in (self.names[1], "return_dict"):
            read.pop(name, None)
        return self.reference(raw) | {name: value for name, value in read.items() if value is not None}, scheduler

    def schedule(self, steps: int, media: Sequence[Any] = ()) -> Tensor:
        """(steps + 1,) float32 times, as the pipeline sets its scheduler for this size; the prompt has no part in it.

        media  for pipelines that cannot be asked without; gray images where none are given
        """
        _, scheduler = self._captured(PLAIN_PROMPT, media or self.stand_in_media(), False, steps)
        return self.read_times(scheduler)

    def read_times(self, scheduler: Any) -> Tensor:
        """The times of a scheduler that has been set, its timesteps kept where they are not 1000 times."""
        times = scheduler.sigmas.float().cpu().clone()
        clocks = scheduler.timesteps.float().cpu()
        if len(times) != len(clocks) + 1 or not bool((times.diff() < 0).all()) or not 0.9 < float(times[0]) <= 1:
            raise PolicyError(
                f"{type(scheduler).__name__} gives times {[round(t, 4) for t in times.tolist()]}; expected one more "
                "than its steps, falling from 1 (noise) to 0: is this a flow-matching pipeline?"
            )
        if not torch.equal(clocks, times[:-1] * self.train_timesteps):
            self._clocks |= dict(zip(times.tolist(), clocks.tolist(), strict=False))
        return times

    @property
    def train_timesteps(self) -> float:
        return float(self.pipeline.scheduler.config.num_train_timesteps)

    def clock(self, t: Tensor) -> Tensor:
        """(N,) timesteps of the scheduler at times `t (N,)`."""
        if not self._clocks:
            return t * self.train_timesteps
        try:
            return t.new_tensor([self._clocks[time] for time in t.tolist()])
        except KeyError as error:
            raise PolicyError(
                f"time {error.args[0]:g} is not on the schedule: this pipeline's timesteps are not "
                f"{self.train_timesteps:g} times its times, so only times that it set itself can be scored"
            ) from None

    def stand_in_media(self) -> tuple[Any, ...]:
        """Gray images, where the pipeline cannot be asked without: the schedule depends on sizes only."""
        from PIL import Image

        return tuple(Image.new("RGB", (self.size.width, self.size.height), "gray") for _ in range(self.images[0]))

    def form(self, conditions: Conditions) -> tuple[Any, ...]:
        """What rows of one forward have in common."""
        return tuple((name, self._form_of(name, value)) for name, value in sorted(conditions.items()))

    def _form_of(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            loose = self.ragged and name.startswith("encoder_hidden_states")
            return tuple(value.shape[2:] if loose else value.shape)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return "list"  # one tensor a row, of any length
        return repr(value)

    def collate(self, rows: Sequence[Conditions]) -> Conditions:
        """Rows of one form in one forward."""
        first = rows[0]
        if all(row is first for row in rows):
            return {name: self._repeated(name, value, len(rows)) for name, value in first.items()}
        return {name: self._joined(name, [row[name] for row in rows]) for name in first}

    def _repeated(self, name: str, value: Any, rows: int) -> Any:
        if isinstance(value, Tensor) and name not in self.shared:
            return value.expand(rows, *value.shape[1:])
        return value * rows if isinstance(value, list) else value

    def _joined(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, list):
            return [each for value in values for each in value]
        if not isinstance(first, Tensor) or name in self.shared:
            return first
        if self.ragged and first.dim() > 1:
            width = max(value.shape[1] for value in values)
            values = [nn.functional.pad(v, [0, 0] * (v.dim() - 2) + [0, width - v.shape[1]]) for v in values]
        return torch.cat(values)

    def velocity(
        self, modules: Mapping[str, Any], x: Tensor, t: Tensor, rows: Sequence[Conditions],
        negatives: Sequence[Conditions] | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, ...) float32 velocity of N rows of one form and one expert.

        modules    the trained components by name, adapted or not
        negatives  N conditions of the unconditional pass; None without guidance
        """
        given, without = self.branches(modules, x, t, rows, negatives)
        return given if without is None else self.guided(given, without, t)

    def branches(
        self, modules: Mapping[str, Any], x: Tensor, t: Tensor, rows: Sequence[Conditions],
        negatives: Sequence[Conditions] | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """What `velocity` is made of: that under the conditions, and that of the unconditional pass, which has no
        gradient unless `asked.through`; None without `negatives`."""
        module = modules[self.expert(float(self.clock(t[:1])))]
        given = self._once(module, x, t, rows)
        if negatives is None:
            return given, None
        with nullcontext() if self.asked.through else torch.no_grad():
            return given, self._once(module, x, t, negatives)

    def guided(self, given: Tensor, without: Tensor, t: Tensor) -> Tensor:
        """`velocity` of its two parts."""
        return self.guide(given, without, self.scale_at(float(self.clock(t[:1]))))

    def _once(self, module: Any, x: Tensor, t: Tensor, rows: Sequence[Conditions]) -> Tensor:
        conditions = self.collate(rows)
        own = {name: value for name, value in conditions.items() if name.startswith("_")}
        dtype = weights_dtype(module)
        inputs = {name: _cast(value, dtype) for name, value in conditions.items() if name not in own}
        entered = self.enter(x.to(dtype), {name: value.to(dtype) for name, value in own.items()})
        inputs |= {self.names[0]: entered, self.names[1]: self.time(self.clock(t), x, own)}
        out = module(**inputs, return_dict=False)[0]
        return self.leave(out, x).float()

    def scale_at(self, clock: float) -> float:
        """The guidance scale of the expert at a timestep."""
        second = self.asked.guidance_2
        return self.asked.guidance if second is None or self.expert(clock) == self.modules[0] else second

    # -- outputs -------------------------------------------------------------------------------------------------

    def decoded(self, z: Tensor) -> Tensor:
        """The VAE's decoder at its own scale."""
        vae = self.pipeline.vae
        return vae.decode(z.to(next(vae.parameters()).dtype), return_dict=False)[0].float()

    def seen(self, output: Any, name: str) -> Tensor:
        """An output of prompt `name` that was made before, as one row of what `clean` takes."""
        whose = f"prompt {name!r}: a stored {'video' if self.video else 'picture'}"
        if not self.video:
            return picture_pixels(output, self.size, whose)
        return film_pixels(output, self.size, whose, self.rate())

    def encoded(self, pixels: Tensor) -> Tensor:
        """The mean of the VAE's encoder at its own scale, which `decoded` undoes."""
        vae = self.pipeline.vae
        found = vae.encode(pixels.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return (found if isinstance(found, Tensor) else found.mode()).float()

    @torch.no_grad()
    def decode(self, x: Tensor, rows: Sequence[Conditions], *, tiles: bool | None = None) -> list[Any]:
        """N outputs of clean states `x (N, ...)`: PIL images, lists of them (video), or `Sound`.

        tiles  decode in tiles, which bounds memory and blends seams; None: videos only
        """
        own = self.collate([{n: v for n, v in row.items() if n.startswith("_")} for row in rows])
        with self._tiling(self.video if tiles is None else tiles):
            pixels = self.pixels(x, own)
        return [Film(v, self.rate()) for v in as_videos(pixels)] if self.video else as_images(pixels)

    def rate(self) -> float:
        """Frames a second of the outputs: where its call has a `frame_rate`, that; else the family's own."""
        asked = self.asked.options.get("frame_rate", call_defaults(self.pipeline).get("frame_rate"))
        return float(asked or self.fps)

    @contextmanager
    def _tiling(self, wanted: bool) -> Iterator[None]:
        vae = self.pipeline.vae
        change = wanted and hasattr(vae, "enable_tiling") and not getattr(vae, "use_tiling", False)
        if not change:
            yield
            return
        vae.enable_tiling()
        try:
            yield
        finally:
            vae.disable_tiling()

    def sampler_note(self) -> str:
        """How sampling differs from the pipeline's call, for people; empty where it does not."""
        scheduler = type(self.pipeline.scheduler).__name__
        if scheduler == "FlowMatchEulerDiscreteScheduler":
            return ""
        return f"Euler steps on the times of {scheduler}: images differ from the pipeline's own sampler"


def weights_dtype(module: Any) -> torch.dtype:
    """Of a transformer, but for the parts that diffusers keeps in float32 beside bfloat16 weights."""
    dtype = getattr(module, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(module.parameters()).dtype


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Half-precision inputs follow the weights; float32 inputs (times, ids, masks) stay as the pipeline made them."""
    if isinstance(value, list):
        return [_cast(each, dtype) for each in value]
    if isinstance(value, Tensor) and value.dtype in HALF:
        return value.to(dtype)
    return value


def moved(conditions: Mapping[str, Any], device: torch.device | str) -> Conditions:
    """Conditions on another device."""
    return {name: _moved(value, device) for name, value in conditions.items()}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(each, device) for each in value)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return value


def nbytes(value: Any) -> int:
    """Of all tensors in conditions."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(nbytes(each) for each in value.values())
    return sum(nbytes(each) for each in value) if isinstance(value, list | tuple) else 0


__all__ = ["ATTENTION_LAYERS", "Conditions", "Generator", "Sound", "moved", "nbytes"]
