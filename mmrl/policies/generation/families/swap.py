"""The default family: any flow pipeline, exact and slow, by replaying one step of its own call.

The pipeline runs with a scheduler that hands out one time and, instead of stepping, notes the velocity it is given
and ends the call. What the call prepares (texts, reference latents) is computed once for each prompt and handed
back; the starting latents are the state to score. One row and one time a call, so named families are faster.
Guidance is the pipeline's own, with gradient through both of its passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError, PolicyError
from mmrl.media import Film, Sound
from mmrl.policies.generation.families.asking import FRAMES, Asked, Size, call_defaults, chosen_size
from mmrl.policies.generation.families.base import PLAIN_PROMPT, SEED, Conditions, Generator, moved
from mmrl.policies.generation.families.capture import CapturedError, StandIn, twin_of

PREPARED = ("encode_prompt", "encode_image")
"""Methods whose answers depend on the prompt alone."""
PICTURES = ("image", "control_image")
"""What calls name their condition images."""
ATTENTION = re.compile(r"attn|attention|to_q|to_k|to_v|qkv")


class Swapped(Generator):
    """Guidance, sizes, conditions and decoding are the pipeline's own, unread."""

    images, guides_itself = (0, 99), True

    def __init__(self, pipeline: Any, asked: Asked = Asked(), like: Generator | None = None):  # noqa: B008 (immutable)
        """like  the family whose way of asking is kept, where its velocity is not the pipeline's"""
        for name in ("transformer", "scheduler"):
            if getattr(pipeline, name, None) is None:
                raise ConfigError(f"model: {type(pipeline).__name__} has no {name}; mmrl trains flow transformers")
        if not hasattr(pipeline, "prepare_latents"):
            raise ConfigError(
                f"model: {type(pipeline).__name__} has no prepare_latents, so a step of it cannot be replayed"
            )
        call = call_defaults(pipeline)
        embeds = bool(pipeline.transformer.config.get("guidance_embeds", False))
        names = ("true_cfg_scale",) if embeds else ("true_cfg_scale", "guidance_scale")
        facts = {
            "modules": tuple(n for n in ("transformer", "transformer_2") if getattr(pipeline, n, None) is not None),
            "video": any(name in call for name in FRAMES),
            "embeds_guidance": embeds,
            "scale": next((name for name in names if name in call), ""),
            "reads_negative": "negative_prompt" in call,
        }
        vars(self).update(facts, call=call, like=like, _state=None)
        super().__init__(pipeline, asked)

    call: dict[str, Any]
    like: Generator | None
    _state: Tensor | None

    def sized(self) -> Size:
        if "height" not in self.call:
            return Size(1, 1)
        return chosen_size(self.pipeline, self.asked, side=1, stride=1 if self.video else None)

    def arguments(self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False) -> dict[str, Any]:
        given = super().arguments(prompt, media, negative=negative)
        if "image" in given:
            pictures = given.pop("image")
            given[next((n for n in PICTURES if n in self.call), "image")] = media[0] if len(media) == 1 else pictures
        if self.video:
            given["frames"] = self.size.frames
        return {name: value for name, value in given.items() if name in self.call}

    def request(self, prompt: str, media: Sequence[Any] = ()) -> dict[str, Any]:
        return super().request(prompt, media) if self.like is None else self.like.request(prompt, media)

    def parts(self, guided: bool) -> dict[str, Any]:
        return {} if self.like is None else self.like.parts(guided)

    def state_shape(self) -> tuple[int, ...]:
        if self._state is None:
            self.conditions(PLAIN_PROMPT)
        assert self._state is not None
        return tuple(self._state.shape[1:])

    def targets(self, module: nn.Module) -> str | list[str]:
        """The attention projections by their names, or every linear layer where none is named so."""
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        return [name for name in linear if ATTENTION.search(name)] or linear

    def clean(self, pixels: Tensor) -> Tensor:
        raise PolicyError(
            f"{type(self.pipeline).__name__} takes no stored outputs: its call is replayed unread, so how its VAE's "
            "latents become its state is not known; the pipelines that mmrl knows by name take them"
        )

    # -- what a call prepares ------------------------------------------------------------------------------------

    def conditions(
        self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False, steps: int = 2
    ) -> Conditions:
        return self._prepared(prompt, media, steps)[0]

    def schedule(self, steps: int, media: Sequence[Any] = ()) -> Tensor:
        return self.read_times(self._prepared(PLAIN_PROMPT, media, steps)[1])

    @torch.no_grad()
    def _prepared(self, prompt: str, media: Sequence[Any], steps: int) -> tuple[Conditions, Any]:
        request = self.request(prompt, media)
        notes: dict[str, list[Any]] = {}
        for seed in (SEED, SEED + 1):  # of two starts, the tensor that differs is the state
            stands = {name: StandIn(getattr(self.pipeline, name)) for name in self.modules}
            twin = twin_of(self.pipeline, {**stands, **self.parts(self.asked.guided)})
            notes = self._noted(twin, notes, again=seed != SEED)
            call = request | {"num_inference_steps": steps, "output_type": "latent"}
            try:
                twin(**call, generator=torch.Generator().manual_seed(seed))
            except CapturedError:
                pass
            finally:
                twin.maybe_free_model_hooks()
        starts = notes.pop("prepare_latents", [])
        place = self._place_of_state(starts)
        conditions = {"_request": request, "_notes": notes, "_start": starts[0], "_place": place}
        self._state = starts[0][place]
        return conditions, twin.scheduler

    def _noted(self, twin: Any, notes: dict[str, list[Any]], *, again: bool) -> dict[str, list[Any]]:
        """Note what the pipeline's preparations return; the second time, texts are handed back."""
        for name in (*PREPARED, "prepare_latents"):
            method = getattr(twin, name, None)
            if method is None:
                continue
            if again and name in PREPARED:
                twin.__dict__[name] = _handing(notes.get(name, []), method)
            else:
                twin.__dict__[name] = _noting(notes.setdefault(name, []), method)
        return notes

    def _place_of_state(self, starts: list[Any]) -> int:
        name = type(self.pipeline).__name__
        if len(starts) != 2:
            raise PolicyError(
                f"{name} calls prepare_latents {len(starts) / 2:g} times; a step of it cannot be replayed"
            )
        pairs = list(zip(*starts, strict=True))
        places = [i for i, (a, b) in enumerate(pairs) if isinstance(a, Tensor) and not torch.equal(a, b)]
        if len(places) != 1:
            raise PolicyError(
                f"{name}: {len(places)} tensors of its prepare_latents are random, expected one, the starting state; "
                "a step of it cannot be replayed"
            )
        return places[0]

    # -- replaying -----------------------------------------------------------------------------------------------

    def form(self, conditions: Conditions) -> tuple[Any, ...]:
        return ()

    def velocity(
        self, modules: Mapping[str, Any], x: Tensor, t: Tensor, rows: Sequence[Conditions],
        negatives: Sequence[Conditions] | None = None,
    ) -> Tensor:  # fmt: skip
        clocks = self.clock(t)
        return torch.cat([
            self._replayed(modules, x[i : i + 1], float(t[i]), float(clocks[i]), row) for i, row in enumerate(rows)
        ])  # fmt: skip

    def _replayed(self, modules: Mapping[str, Any], x: Tensor, t: float, clock: float, row: Conditions) -> Tensor:
        twin = self._at(modules, x, t, clock, row)
        found: list[Tensor] = []

        def step(model_output: Tensor, *args: Any, **kwargs: Any) -> None:
            found.append(model_output)
            raise CapturedError

        twin.scheduler.step = step
        try:
            _undecorated(twin)(twin, **row["_request"], **self._quiet())
        except CapturedError:
            return self.moving(found[0]).float()
        raise PolicyError(f"{type(self.pipeline).__name__} never stepped its scheduler: it cannot be replayed")

    def _at(self, modules: Mapping[str, Any], x: Tensor, t: float, clock: float, row: Conditions) -> Any:
        """A twin of the pipeline whose only step starts at the state `x (1, ...)`."""
        twin = twin_of(self.pipeline, {**self.parts(self.asked.guided), **modules})
        for name, answers in row["_notes"].items():
            twin.__dict__[name] = _handing(moved({"answers": answers}, x.device)["answers"], None)
        start = list(moved({"start": row["_start"]}, x.device)["start"])
        start[row["_place"]] = x.to(start[row["_place"]].dtype)
        twin.__dict__["prepare_latents"] = lambda *a, **k: tuple(start) if len(start) > 1 else start[0]
        scheduler = twin.scheduler

        def set_timesteps(
            num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None,
            timesteps: Any = None, **others: Any,
        ) -> None:  # fmt: skip
            scheduler.sigmas = torch.tensor([t, 0.0])
            scheduler.timesteps = torch.tensor([clock], device=device)
            scheduler.num_inference_steps = 1

        scheduler.set_timesteps = set_timesteps
        return twin

    def _quiet(self) -> dict[str, Any]:
        """Two steps, for schedules that cannot be computed for one (`_at` sets another); the draws of the check, for
        calls that sample the latents of their condition images."""
        seeded = torch.Generator().manual_seed(SEED)
        return {"num_inference_steps": 2, "output_type": "latent", "generator": seeded}

    @torch.no_grad()
    def decode(self, x: Tensor, rows: Sequence[Conditions], *, tiles: bool | None = None) -> list[Any]:
        """By the pipeline itself, whose last step is made to end at the state."""
        modules = {name: getattr(self.pipeline, name) for name in self.modules}
        outputs: list[Any] = []
        with self._tiling(self.video if tiles is None else tiles):
            for i, row in enumerate(rows):
                final = x[i : i + 1]
                time = min(self._clocks, default=1.0)
                twin = self._at(modules, final, time, self._clocks.get(time, self.train_timesteps), row)
                twin.scheduler.step = _ending(final)
                kind = "np" if "height" not in self.call else "pil"
                answer = twin(**row["_request"], **self._quiet() | {"output_type": kind})
                outputs.append(self._output(answer))
        return outputs

    def _output(self, answer: Any) -> Any:
        for name in ("images", "image"):
            if (found := getattr(answer, name, None)) is not None:
                return found[0]
        if (found := getattr(answer, "frames", None)) is not None:
            return Film(found[0], self.rate())
        if (found := getattr(answer, "audios", None)) is not None:
            config = self.pipeline.vae.config
            return Sound(found[0], int(config.get("sampling_rate") or config["sample_rate"]))
        raise PolicyError(f"{type(self.pipeline).__name__} returns {type(answer).__name__}, which mmrl cannot read")

    def sampler_note(self) -> str:
        note = f"no family is named for {type(self.pipeline).__name__}: its own call is replayed, one row at a time"
        return "; ".join(filter(None, (note, super().sampler_note())))


def _noting(notes: list[Any], method: Any) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        answer = method(*args, **kwargs)
        notes.append(answer if isinstance(answer, tuple) else (answer,))
        return answer

    return noted


def _handing(answers: list[Any], method: Any) -> Any:
    """Hand back noted answers in order."""
    left = list(answers)

    def handed(*args: Any, **kwargs: Any) -> Any:
        if not left:
            raise PolicyError("the pipeline prepares a step of its replay more often than its call")
        answer = left.pop(0)
        return answer if len(answer) > 1 else answer[0]

    return handed


def _ending(final: Tensor) -> Any:
    def step(model_output: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

        latents = final.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=latents) if return_dict else (latents,)

    return step


def _undecorated(pipeline: Any) -> Any:
    """The pipeline's call without its `no_grad`."""
    call = type(pipeline).__call__
    while hasattr(call, "__wrapped__"):
        call = call.__wrapped__
    return call
