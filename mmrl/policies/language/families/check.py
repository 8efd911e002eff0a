"""The self-check: what a model can do, found by running it, before anything trains on it.

The reference is one unpadded row at a time: raw media, the model's own forward pass, positions and logits. Every other
way to get these log-probs is tried and compared: features kept of the media, padded batches of unlike prompts, the
head on chosen states, responses that go on from their prompt's cache, the packed row. A way that does not agree is not
used. It runs in float32 on a reduced copy of the model (`reduced.py`), on one rank, and its result is kept on disk
under everything it depends on (`kept.py`).

A model that does not read its pictures is refused with the numbers: then no other agreement means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.language import scoring
from mmrl.policies.language.encoded import Encoded, to_device, with_features
from mmrl.policies.language.encoding import extended
from mmrl.policies.language.families import turns
from mmrl.policies.language.families.base import Capabilities
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.families.prompts import Probe
from mmrl.policies.language.families.prompts import picture as probe_picture
from mmrl.policies.language.families.reduced import chosen, random_actions, reduced
from mmrl.policies.language.fast import shared_prompt, two_calls
from mmrl.policies.language.log_probs import Distribution
from mmrl.policies.language.sampling import Recomputed, RepeatedCache, SharedCache

TOLERANCE = 5e-5
"""Of float32 log-probs of two ways that are the same. Over 15 tokens rounding was seen to make up to 3e-5."""
CONTROL = 2e-3
"""Another picture of the same size must change some log-prob by this much."""
LENGTHS = (5, 2, 15)
"""Of responses; one longer than the windows of a reduced model."""
REFUSED = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, PolicyError)
"""What a way that a model does not know may raise; it is noted, and the way is not used."""


@dataclass
class Trial:
    """A reduced model, prompts, three responses to each, and their log-probs by the reference.

    Rows are numbered prompt by prompt. `wrong` are the prompts with other pictures.
    """

    core: Any
    family: Family
    prompts: list[Encoded]
    wrong: list[Encoded | None]
    prompt: Tensor
    actions: Tensor
    lengths: Tensor
    expected: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.actions.shape[1]) < self.lengths[:, None]

    def entries(self, prompts: Sequence[Encoded] | None = None) -> list[Encoded]:
        shown = prompts or self.prompts
        return [shown[p] for p in self.prompt.tolist()]

    def gap(self, log_probs: Tensor) -> float:
        return float((log_probs.cpu() - self.expected)[self.mask].abs().max())


class Unsettled(PolicyError):
    """What a token is worth changes with what stands behind it, or with how many keys stand beside it.

    gap  largest difference of a log-prob, or what was raised
    """

    def __init__(self, message: str, gap: float | str):
        super().__init__(message)
        self.gap = gap


@torch.no_grad()
def find(model: Any, family: Family, probes: Sequence[Probe], attention: str) -> Capabilities:
    """Run every way on a reduced copy of `model`, whose text decoder runs under `attention`.

    Where layers choose their keys and two score alike, which one is taken depends on how many stand beside it. Rows
    that have no more tokens than are chosen have no such choice: then those alone are read.
    """
    try:
        return _found(model, family, probes, attention)
    except Unsettled as refused:
        limit = chosen(model)
        if limit is None:
            raise
        try:
            found = _found(model, family, probes, attention, choices=False)
        except PolicyError:
            raise refused from None
        found.limit = limit
        found.gaps["beyond the keys chosen"] = refused.gap
        found.fallbacks = found.named_fallbacks()
        return found


def _found(
    model: Any, family: Family, probes: Sequence[Probe], attention: str, *, choices: bool = True
) -> Capabilities:
    core = reduced(model, family, choices=choices)
    trying = type(family)(core.config, family.processor)
    found = trying.capabilities
    trial = prepared(core, trying, probes)
    _read_pictures(trial, model)
    _try(found, "linear_head", lambda: _head(trial))
    found.linear_head = _passed(found, "linear_head")
    if not found.linear_head:
        raise PolicyError(
            f"model type {family.model_type!r}: its logits are not cap(scale x head(last states)); largest difference "
            f"{found.gaps['linear_head']}, tolerance {TOLERANCE:.0e}. It needs a family file of its own"
        )
    module = scoring.ScoredLanguageModel(core, trying, Distribution(1.0, (), trying.soft_cap, found.scale))
    _try(found, "single rows", lambda: _alone(trial, module, trial.prompts))
    if not _passed(found, "single rows"):
        raise PolicyError(
            f"model type {family.model_type!r}: even single rows of raw media do not have the log-probs of its own "
            f"forward pass: {found.gaps['single rows']}, tolerance {TOLERANCE:.0e}. It needs a family file of its own"
        )
    _try(found, "features", lambda: _alone(trial, module, _with_features(trial)))
    found.features = _passed(found, "features")
    if found.features:
        _gradients(trial)
    _batches(trial, module)
    _cached(trial, module)
    _packed(trial, module, attention)
    _try(found, "a picture in a later turn", lambda: _later_turn(core, trying))
    found.turns = _passed(found, "a picture in a later turn")
    found.fallbacks = found.named_fallbacks()
    return found


def _passed(found: Capabilities, name: str) -> bool:
    gap = found.gaps[name]
    return isinstance(gap, float) and gap < TOLERANCE


def _try(found: Capabilities, name: str, way: Callable[[], float]) -> None:
    try:
        found.gaps[name] = way()
    except REFUSED as error:
        found.gaps[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


# -- the reference -----------------------------------------------------------------------------------------------


def prepared(core: Any, family: Family, probes: Sequence[Probe]) -> Trial:
    prompts, wrong, rows, known = [], [], [], []
    for index, probe in enumerate(probes):
        answers = random_actions(family, LENGTHS, seed=index)
        try:
            entry = probe.encoded(family, core)
            known += [reference(core, family, entry, ids) for ids in answers]
        except REFUSED as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if probe.needed:
                raise PolicyError(f"model type {family.model_type!r} cannot read {probe.name}: {said}") from None
            family.capabilities.gaps[f"prompt: {probe.name}"] = f"refused by processor or model: {said}"
            continue
        prompts.append(entry)
        wrong.append(probe.changed().encoded(family, core) if entry.media else None)
        rows += answers
    lengths = torch.tensor([len(row) for row in rows])
    actions, expected = (torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (rows, known))
    prompt = torch.arange(len(prompts)).repeat_interleave(len(LENGTHS))
    return Trial(core, family, prompts, wrong, prompt, actions, lengths, expected)


def own_logits(core: Any, family: Family, entry: Encoded, actions: Tensor) -> Tensor:
    """(T, V) float32 before each token of one response: an unpadded row, raw media, the model's own positions."""
    whole = extended(entry, actions)
    aligned = {name: row[None] for name, row in whole.aligned.items()}
    media = {name: family.cast(core, name, value) for name, value in entry.media.items()}
    inputs = {"input_ids": whole.ids[None], "attention_mask": torch.ones_like(whole.ids)[None], **aligned, **media}
    return core(**to_device(inputs, core.device), use_cache=False).logits[0, len(entry) - 1 : -1].float()


def reference(core: Any, family: Family, entry: Encoded, actions: Tensor, suppressed: Sequence[int] = ()) -> Tensor:
    """(T,) log-probs of one response. suppressed: ids that cannot be sampled"""
    logits = Distribution(1.0, tuple(suppressed))(own_logits(core, family, entry, actions))
    return torch.log_softmax(logits, -1).gather(-1, actions.to(logits.device)[:, None])[:, 0].cpu()


def _read_pictures(trial: Trial, model: Any) -> None:
    """Another picture of the same size, at the same place, must show in the log-probs of every prompt with media.

    Where every layer has a window, shorter ones may not reach back to a picture: then the model's own decide.
    """
    found = trial.family.capabilities
    changes = _changes(trial, trial.core)
    if changes and min(changes) < CONTROL:
        changes = _changes(trial, reduced(model, trial.family, windows=False))
    found.gaps["control"] = min(changes) if changes else 0.0
    if not changes or min(changes) < CONTROL:
        raise PolicyError(
            f"model type {trial.family.model_type!r} does not read its pictures: with others of the same size its "
            f"log-probs change by {', '.join(f'{c:.1e}' for c in changes) or 'nothing'}, expected at least "
            f"{CONTROL:.0e}. The processor may drop media, or the encoders may not be connected"
        )


def _changes(trial: Trial, core: Any) -> list[float]:
    """Of each prompt with media, how far a log-prob moves with other pixels."""
    changes = []
    for p, other in enumerate(trial.wrong):
        if other is None:
            continue
        row = int((trial.prompt == p).nonzero()[0])
        actions = trial.actions[row, : trial.lengths[row]]
        shown, got = (reference(core, trial.family, entry, actions) for entry in (trial.prompts[p], other))
        changes.append(float((got - shown).abs().max()))
    return changes


# -- the ways ----------------------------------------------------------------------------------------------------


def _head(trial: Trial) -> float:
    """Logits from states, against the model's own; finds the scale between them."""
    core, family = trial.core, trial.family
    entry = next(e for e in trial.prompts if e.media)
    rows = scoring.Plain.of([entry], torch.zeros(1, 0, dtype=torch.long), torch.zeros(1), core.device, family)
    own = core(**family.with_media(core, rows.inputs), use_cache=False).logits.float()
    plain = family.head(core)(family.states(core, rows.inputs)).float()
    cap = family.soft_cap
    wanted = own if cap is None else cap * torch.atanh((own / cap).clamp(-1 + 1e-7, 1 - 1e-7))
    scale = float((wanted.double() * plain).sum() / (plain.double() * plain).sum())
    scale = 1.0 if abs(scale - 1.0) < 1e-4 else scale
    family.capabilities.scale = scale
    made = Distribution(1.0, (), cap, scale)(plain)
    return float((made - own).abs().max())


def _score(trial: Trial, module: Any, rows: scoring.Rows) -> float:
    device = trial.core.device
    numbers = module(rows, trial.actions.to(device), trial.mask.to(device))
    return trial.gap(numbers["log_probs"])


def _with_features(trial: Trial) -> list[Encoded]:
    def kept(entry: Encoded) -> Encoded:
        if not entry.media:
            return entry
        return with_features(entry, trial.family.encode_media(trial.core, to_device(entry.media, trial.core.device)))

    return [kept(entry) for entry in trial.prompts]


def _gradients(trial: Trial) -> None:
    """Whose weights have a part in what is made of a picture."""
    core, family = trial.core, trial.family
    entry = next(e for e in trial.prompts if e.media)
    readers = {id(p) for reader in family.readers(core).values() for p in reader.parameters()}

    def has_a_part(weights: list[Any]) -> bool:
        for p in weights:
            p.requires_grad_(True)
        with torch.enable_grad():
            made = family.encode_media(core, to_device(entry.media, core.device))
        core.requires_grad_(False)
        return any(part.requires_grad for part in _tensors(made))

    every = [p for p in core.parameters() if p.is_floating_point()]
    family.capabilities.learns = has_a_part([p for p in every if id(p) in readers])
    family.capabilities.borrows = has_a_part([p for p in every if id(p) not in readers])


def _tensors(made: Any) -> Iterator[Tensor]:
    """All that lie anywhere in it."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, dict):
        yield from _tensors(list(made.values()))
    elif isinstance(made, (list, tuple)):
        for part in made:
            yield from _tensors(part)


def _alone(trial: Trial, module: Any, prompts: Sequence[Encoded]) -> float:
    """Every row by itself."""
    rows = trial.actions, trial.lengths, trial.core.device, trial.family
    return _score(trial, module, scoring.one_by_one(trial.entries(prompts), *rows))


def _batches(trial: Trial, module: Any) -> None:
    found = trial.family.capabilities
    rows = trial.actions, trial.lengths, trial.core.device, trial.family
    _try(found, "batches of raw media", lambda: _score(trial, module, scoring.Plain.of(trial.entries(), *rows)))
    media = _passed(found, "batches of raw media")
    found.batches = "media" if media else None
    if found.features:
        shown = trial.entries(_with_features(trial))
        _try(found, "batches of features", lambda: _score(trial, module, scoring.Plain.of(shown, *rows)))
        features = _passed(found, "batches of features")
        # Both must agree, since a pass may meet either.
        found.batches = ("media" if media else "features") if features else None


def _shown(trial: Trial) -> list[Encoded]:
    return _with_features(trial) if trial.family.capabilities.features else trial.prompts


def _cached(trial: Trial, module: Any) -> None:
    """Two calls, and decoding, with a cache that is repeated for every row."""
    found, shown = trial.family.capabilities, _shown(trial)
    _try(found, "two calls", lambda: _score(trial, module, two_calls_of(trial, shown)))
    _try(found, "decoding", lambda: _worst(trial, module, RepeatedCache, shown))
    found.prefix_cache = _passed(found, "two calls") and _passed(found, "decoding")
    if found.prefix_cache:
        return
    without = "decoding without a cache"
    _try(found, without, lambda: _worst(trial, module, Recomputed, shown))
    if not _passed(found, without):
        raise Unsettled(
            f"model type {trial.family.model_type!r}: tokens written one by one have other log-probs than the same "
            f"tokens in one pass, without any cache: {found.gaps[without]}, tolerance {TOLERANCE:.0e}. What a token is "
            "worth depends on later ones, or on a choice among keys that score alike, so nothing that this model "
            "writes can be scored",
            found.gaps[without],
        )


def units(trial: Trial) -> list[list[int]]:
    """Prompts that may share a batch."""
    every = list(range(len(trial.prompts)))
    return [every] if trial.family.capabilities.batches else [[p] for p in every]


def two_calls_of(trial: Trial, shown: Sequence[Encoded]) -> scoring.Rows:
    parts: list[tuple[Tensor, scoring.Rows]] = []
    for unit in units(trial):
        rows = torch.isin(trial.prompt, torch.tensor(unit)).nonzero().squeeze(1)
        given = trial.prompt[rows], trial.actions[rows], trial.lengths[rows]
        parts.append((rows, two_calls.lay_out(shown, *given, trial.core.device, trial.family)))
    return scoring.Parts(parts)


def _worst(trial: Trial, module: Any, way: Any, shown: Sequence[Encoded]) -> float:
    return max(gap for part in units(trial) for gap in decoded(trial, module, way, part, shown))


def decoded(trial: Trial, module: Any, way: Any, unit: Sequence[int], shown: Sequence[Encoded]) -> list[float]:
    """Differences at each token of responses that are fed token by token to the state that decoding keeps; half of the
    rows are dropped on the way."""
    rows = torch.isin(trial.prompt, torch.tensor(unit)).nonzero().squeeze(1)
    context = torch.unique(trial.prompt[rows], return_inverse=True)[1].to(trial.core.device)
    state = way(module, [shown[p] for p in unit], context)
    actions, gaps = trial.actions[rows], []
    for step in range(actions.shape[1]):
        alive = state.rows.cpu()
        token = actions[alive, step]
        got = torch.log_softmax(state.logits.float(), -1).cpu().gather(-1, token[:, None])[:, 0]
        here = trial.mask[rows][alive, step]
        gaps += (got - trial.expected[rows][alive, step])[here].abs().tolist()
        if step + 1 == actions.shape[1]:
            break
        still = (trial.lengths[rows][alive] > step + 1).nonzero().squeeze(1).to(trial.core.device)
        if len(still) < len(alive):
            state.keep(still)
            token = token[still.cpu()]
        state.advance(token.to(trial.core.device))
    return gaps


def _packed(trial: Trial, module: Any, attention: str) -> None:
    found, shown = trial.family.capabilities, _shown(trial)
    if reason := shared_prompt.refusal(trial.core, attention):
        found.gaps["packed"] = reason
        return
    if not (found.features or found.batches == "media"):
        found.gaps["packed"] = "media of several prompts cannot stand in one row"
        return
    try:
        shared_prompt.install(trial.core, trial.family)
    except REFUSED as error:
        found.gaps["packed"] = f"{type(error).__name__}: {error}"
        return
    module.shared = True

    def packed() -> float:
        rows = trial.prompt, trial.actions, trial.lengths, trial.core.device, trial.family
        return _score(trial, module, shared_prompt.pack(shown, *rows))

    for form in ("causal", "masked"):
        found.packed = form
        _try(found, f"packed, {form}", packed)
        if _passed(found, f"packed, {form}"):
            break
        found.packed = None
    if found.packed and set(trial.family.layer_types) == {"full_attention"}:
        _try(found, "shared cache", lambda: _worst(trial, module, SharedCache, shown))
        found.shared_cache = _passed(found, "shared cache")


def _later_turn(core: Any, family: Family) -> float:
    """A conversation put together turn by turn, against the same conversation rendered and processed at once."""
    images = [probe_picture(48, 64, 1), probe_picture(64, 48, 2)]
    ask, then = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]} for text in ("What?", "And?")
    ]
    reply = {"role": "assistant", "content": [{"type": "text", "text": turns.REPLY}]}
    render = family.processor.apply_chat_template
    first, whole = (render(m, tokenize=False, add_generation_prompt=True) for m in ([ask], [ask, reply, then]))
    wanted = family.encode(core, whole, images, [])
    written = family.processor.tokenizer(turns.REPLY, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    later = turns.turn(family, core, turns.rendered(family, [then]), images[1:])
    row = turns.joined(family, core, family.encode(core, first, images[:1], []), [written, later])
    if not torch.equal(row.ids, wanted.ids):
        raise PolicyError(f"{len(row)} tokens put together, {len(wanted)} rendered at once, and they differ")
    actions = random_actions(family, (6,), seed=9)[0]
    gaps = reference(core, family, row, actions) - reference(core, family, wanted, actions)
    return float(gaps.abs().max())
