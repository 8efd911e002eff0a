"""What a generator's run takes of memory, and settings that fit a given card; nothing is loaded.

    mmrl plan flow CONFIG --card 24

The trained step, sampling, encoding and decoding are counted apart: text encoders and VAE lie on the device only while
they are used (`policy.offload`), so the largest of the four decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mmrl.errors import ConfigError, MMRLError
from mmrl.pipelines.config import RunConfig, read_config
from mmrl.pipelines.progress import quiet_libraries
from mmrl.policies import adapters
from mmrl.policies.generation import unconditional
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.counting import Counted, Live, bytes_of, count_passes
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.hollow import blank, hollow_pipeline
from mmrl.policies.generation.pipeline import packed_parts
from mmrl.policies.quantized import bytes_saved
from mmrl.precision import DTYPES
from mmrl.training.pieces import refuse_pieces

PROMPT = " ".join(["a photograph of an animal on a table in a room"] * 4)
"""Forty words, where the number of text tokens depends on the prompt."""
ROOM = 0.9
"""Of a card: the rest is for the allocator, kernels and the context."""
ENOUGH_PAIRS = 4
"""Without checkpointing fewer pairs at once are not worth what it saves in time."""


@dataclass(frozen=True)
class Measures:
    """Bytes, by what they belong to.

    transformer, frozen  weights that are trained or carry adapters; text encoders, VAE
    adapters, trained    float32 adapters; numbers that are trained
    one, two             passes over one and two (row, step) pairs; None with why not
    decoding             the most at once while `decode_batch` outputs are decoded; None where that cannot be counted
    state                of one latent
    """

    transformer: int
    frozen: int
    adapters: int
    trained: int
    one: Counted
    two: Counted
    decoding: int | None
    state: int

    def passes(self, pairs: int, at_once: int) -> tuple[int, int]:
        """(training, sampling) peaks of `pairs` in one graph, `at_once` in one call of the transformer."""
        each = max(self.two.saved - self.one.saved, 0)
        saved = self.one.saved + (pairs - 1) * each
        over = [c.trained - c.saved for c in (self.one, self.two)]
        call = min(pairs, at_once)
        extra = max(over[0], over[0] + (call - 1) * (over[1] - over[0]))
        return saved + extra, self.sampling(at_once)

    def sampling(self, at_once: int) -> int:
        return self.one.sampled + (at_once - 1) * max(self.two.sampled - self.one.sampled, 0)


@dataclass(frozen=True)
class Peaks:
    """Bytes at once on the device, by what the step is doing."""

    training: int
    sampling: int
    encoding: int
    decoding: int

    @property
    def most(self) -> int:
        return max(self.training, self.sampling, self.encoding, self.decoding)


def measures(settings: FlowPolicyConfig) -> Measures:
    """Counted on the meta device, for these settings. Raises OSError or ValueError where there is no configuration."""
    pipeline, models = hollow_pipeline(settings.model, DTYPES[settings.dtype])
    generator = generator_of(pipeline, settings.asked())
    names = [name for name in generator.modules if name in models]
    frozen = sum(bytes_of(part) for name, part in models.items() if name not in names)
    bases = {name: bytes_of(models[name]) for name in names}
    packed = sum(_packing(models[name], settings) for name in names)
    prepared = {name: _prepared(generator, models[name], settings) for name in names}
    trained = sum(p.numel() for part in prepared.values() for p in part.parameters() if p.requires_grad)
    with blank():
        media = generator.stand_in_media()
        conditions = generator.conditions(PROMPT, media)
        own = {name: value for name, value in conditions.items() if name.startswith("_")}
    autocast = None if settings.autocast is None else DTYPES[settings.autocast]
    one, two = (count_passes(generator, prepared[names[0]], conditions, n, autocast=autocast) for n in (1, 2))
    return Measures(
        transformer=sum(bases.values()) - packed, frozen=frozen,
        adapters=sum(map(bytes_of, prepared.values())) - sum(bases.values()), trained=trained, one=one, two=two,
        decoding=_decoding(generator, own, settings), state=4 * _numbers(generator.state_shape()),
    )  # fmt: skip


def _packing(module: Any, settings: FlowPolicyConfig) -> int:
    """Bytes that `policy.quantize` saves."""
    if settings.quantize is None:
        return 0
    return bytes_saved(settings.quantize, packed_parts(module), DTYPES[settings.dtype].itemsize)


def _prepared(generator: Generator, module: Any, settings: FlowPolicyConfig) -> Any:
    """The transformer as it will be trained: adapters, checkpointing."""
    if settings.gradient_checkpointing:
        if generator.checkpointing is not None:
            raise ConfigError(f"gradient_checkpointing: {generator.checkpointing}")
        module.enable_gradient_checkpointing()
    if settings.lora is None:
        return module.train().requires_grad_(True)
    lora = settings.lora
    if lora.targets is None:
        lora = lora.model_copy(update={"targets": generator.targets(module)})
    with torch.device("meta"):
        return adapters.attach_lora(module.requires_grad_(False), lora).train()


def _decoding(generator: Generator, own: dict[str, Any], settings: FlowPolicyConfig) -> int | None:
    """The most at once while outputs are decoded; None where the decoder cannot be run without values."""
    rows = settings.decode_batch
    state = torch.zeros(1).expand(rows, *generator.state_shape())
    tiles = generator.video if settings.decode_tiles is None else settings.decode_tiles
    try:
        with blank(), generator._tiling(tiles), Live() as live, torch.no_grad():
            generator.pixels(state, {n: v.expand(rows, *v.shape[1:]) for n, v in own.items()})
    except (RuntimeError, NotImplementedError, AttributeError, MMRLError):
        return None
    return live.most


def _numbers(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def peaks(found: Measures, config: RunConfig, reference: bool) -> Peaks:
    """Of one process that holds the model whole; `reference`: whether passes read the weights training began with."""
    settings, training = config.policy_settings(), config.training
    assert isinstance(settings, FlowPolicyConfig)
    copies = (settings.ema is not None) + (settings.anchor is not None) + (settings.behaviour is not None)
    optimizer = found.trained * 4 * (2 + copies)
    copy = found.transformer if reference and settings.lora is None else 0
    held = found.transformer + found.adapters + optimizer + copy + (0 if settings.offload else found.frozen)
    encoders = found.frozen if settings.offload else 0
    rows = training.prompts_per_step * training.group_size
    stored = 0 if settings.latents_on == "cpu" else sum(kept_of_rollouts(settings, rows, found.state))
    trained, sampled = found.passes(pairs_of(config), settings.transformer_batch)
    gradients = found.trained * (2 if settings.lora is None and settings.dtype != "float32" else 4)
    return Peaks(
        training=held + gradients + stored + trained,
        sampling=held + stored + 2 * rows * found.state + sampled,
        encoding=held + stored + encoders,
        decoding=held + stored + encoders + rows * found.state + (found.decoding or 0),
    )


def kept_of_rollouts(settings: FlowPolicyConfig, rows: int, state: int) -> tuple[int, int]:
    """Bytes of the states around trained steps, and of what is kept beside them in float32: means, and what the
    unconditional pass found.

    state  of one, in float32
    """
    width = settings.train_steps.size + 1 if settings.train_steps.select == "window" else settings.steps + 1
    pushed = settings.push is not None and settings.push.keep
    beside = settings.keep_means + pushed + unconditional.asked(settings)
    return rows * width * state * (2 if settings.latent_dtype != "float32" else 4) // 4, beside * rows * width * state


def pairs_of(config: RunConfig) -> int:
    """(row, step) pairs whose graphs are held at once."""
    training = config.training
    rows = min(training.micro_batch_size, training.prompts_per_step * training.group_size)
    return int(training.micro_batch_actions or rows * scored_steps(config.policy_settings()))


def scored_steps(settings: FlowPolicyConfig) -> int:
    """How many states of an output are trained: draws of its matching loss, or stochastic steps."""
    chosen, possible = settings.train_steps, settings.steps - 1
    if settings.likelihood == "matching":
        return settings.draws.count
    if chosen.select == "window":
        return min(possible, chosen.size + len(chosen.also))
    return {"all": possible, "one": 1, "fraction": max(1, int(chosen.fraction * possible))}[chosen.select]


# ---- what is said


def memory_lines(config: RunConfig, reference: bool, card: float | None = None) -> list[str]:
    """The memory of a generator's run for people; with `card` GiB, settings that fit it."""
    settings = config.policy_settings()
    assert isinstance(settings, FlowPolicyConfig)
    quiet_libraries()  # what they say of prompts and dtypes is about a model that is loaded
    try:
        found = measures(settings)
    except (OSError, ValueError) as error:
        return [f"  cannot be counted: {str(error).splitlines()[0]}"]
    at = peaks(found, config, reference)
    lines = [
        f"  {_count(found.trained)} parameters trained; transformer {size(found.transformer)}, adapters "
        f"{size(found.adapters)}, text encoders and VAE {size(found.frozen)}"
        + (" (on the CPU between uses)" if settings.offload else ""),
        f"  a (row, step) pair keeps {size(found.two.saved - found.one.saved)} until its backward; "
        f"{pairs_of(config)} at once",
        *_kept_lines(config, found.state),
        *(f"  {name}: {size(getattr(at, name))}" for name in ("training", "sampling", "encoding", "decoding")),
        *(
            ["  decoding itself is not in it: this decoder runs with its weights alone"]
            if found.decoding is None
            else []
        ),
        f"  peak {size(at.most)} on each process that holds the model whole; allocator and kernels come on top",
    ]
    return lines if card is None else [*lines, "", *_proposal(config, reference, card)]


def _kept_lines(config: RunConfig, state: int) -> list[str]:
    settings = config.policy_settings()
    assert isinstance(settings, FlowPolicyConfig)
    if not unconditional.asked(settings):
        return []
    rows = config.training.prompts_per_step * config.training.group_size
    states, beside = kept_of_rollouts(settings, rows, state)
    where = "the CPU" if settings.latents_on == "cpu" else "the device"
    return [
        f"  rollouts keep {size(states)} of states on {where}, and {size(beside)} beside them, for unconditional "
        "velocities that the first optimizer step asks no more (policy.reuse_unconditional)"
    ]


def _proposal(config: RunConfig, reference: bool, card: float) -> list[str]:
    room = card * 2**30 * ROOM
    for changes in candidates(config):
        changed = read_config(config.model_dump(mode="json"), changes, config.modality)
        found = measures(changed.policy_settings())
        if fitted := fit(found, changed, reference, room):
            more, peak = fitted
            said = " ".join([*changes, *more]) or "as configured"
            return [f"a card of {card:g} GiB", f"  {said}", f"  peak {size(peak)}, {ROOM:.0%} of the card to be used"]
    held = found.transformer + found.adapters
    return [
        f"a card of {card:g} GiB",
        f"  nothing fits: the transformer alone takes {size(held)} in {changed.policy_settings().dtype}; hold it in "
        "shards (configs/accelerate/fsdp2.yaml), or choose a smaller model or size",
    ]


def candidates(config: RunConfig) -> Iterator[list[str]]:
    """Changes to try, those that cost least first."""
    settings = config.policy_settings()
    base = [] if settings.offload else ["policy.offload=true"]
    half = [] if settings.dtype != "float32" or settings.lora is None else ["policy.dtype=bfloat16"]
    stored = [] if settings.latents_on == "cpu" else ["policy.latents_on=cpu"]
    again = [] if settings.gradient_checkpointing else ["policy.gradient_checkpointing=true"]
    seen: list[list[str]] = []
    for dtype in ([], half):
        for checkpointing in ([], again):
            for kept in ([], stored):
                if (changes := [*base, *dtype, *checkpointing, *kept]) not in seen:
                    seen.append(changes)
    yield from ([[]] if base else [])
    yield from seen


def fit(found: Measures, config: RunConfig, reference: bool, room: float) -> tuple[list[str], int] | None:
    """The settings that shrink batches until all four peaks fit, and the peak; None where none do."""
    settings = config.policy_settings()
    changes: list[str] = []
    pairs, at_once = pairs_of(config), settings.transformer_batch

    def now(extra: list[str]) -> Peaks:
        return peaks(found, read_config(config.model_dump(mode="json"), extra, config.modality), reference)

    while now(changes).sampling > room and at_once > 1:
        at_once //= 2
        changes = [f"policy.transformer_batch={at_once}"]
    least = 1 if settings.gradient_checkpointing else min(ENOUGH_PAIRS, pairs)
    smaller: list[str] = []
    while now([*changes, *smaller]).training > room and pairs > least:
        pairs = max(least, pairs // 2)
        smaller = _pieces(config, pairs)
    changes += smaller
    decode, each = settings.decode_batch, (found.decoding or 0) / settings.decode_batch
    while decode > 1 and each and now(changes).decoding - (settings.decode_batch - decode) * each > room:
        decode //= 2
    saved = int((settings.decode_batch - decode) * each)
    changes += [f"policy.decode_batch={decode}"] if decode < settings.decode_batch else []
    last = now(changes)
    most = max(last.training, last.sampling, last.encoding, last.decoding - saved)
    return (changes, most) if most <= room else None


def _pieces(config: RunConfig, pairs: int) -> list[str]:
    """How a run is told to hold `pairs` at once: by actions, or by whole rows where its objective keeps rows whole."""
    from mmrl.objective import Objective
    from mmrl.rollout.nesting import Nested
    from mmrl.training.passes import plan_passes

    kind, objective = config.policy_class, Objective.of(config.objective)
    plan = plan_passes(objective, kind, Nested.of(config.rollout), config.policy_settings())
    try:
        refuse_pieces(kind, objective, plan.update, pairs)
    except ConfigError:
        steps = max(1, pairs_of(config) // config.training.micro_batch_size)
        return [f"training.micro_batch_size={max(1, pairs // steps)}"]
    return [f"training.micro_batch_actions={pairs}"]


def size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:,.2f} B" if numbers >= 1e9 else f"{numbers / 1e6:,.1f} M"
