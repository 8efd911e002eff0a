"""How rows are laid out for scoring: which ways a model and a configuration allow, and each of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.fast import shared_prompt, two_calls
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.scoring import Parts, Plain, Rows, one_by_one
from mmrl.policies.language.spans import scored_extents
from mmrl.record import Rollouts

SHARED_COST = 1.25
"""What a token of a packed row or of two calls costs, in tokens of plain rows. Measured with prompts of 60 to 420,
answers of 32, forward and backward: 1.03 to 1.5 where no row shares its prompt."""
LONG = 512
"""Tokens of an answer from which a packed one costs what a plain one does: .98 at 1,024, of two calls 1.19
(`benchmarks/bench_ways.py`)."""


class Way(Enum):
    """Fastest first."""

    PACKED = "packed"
    TWO_CALLS = "two_calls"
    PLAIN = "plain"


def ways(config: Any, family: Family, core: Any) -> tuple[list[Way], dict[Way, str]]:
    """What `shared_prompt` and the model's capabilities leave, fastest first, and of what `auto` has not, why: plain
    rows can be had of every model."""
    reasons = {Way.PACKED: _not_packed(config, family, core), Way.TWO_CALLS: _not_two_calls(config, family, core)}
    asked = {"on": Way.PACKED, "packed": Way.PACKED, "two_calls": Way.TWO_CALLS}.get(config.shared_prompt)
    if asked and (reason := reasons[asked]):
        raise ConfigError(
            f"shared_prompt: {config.shared_prompt}, but {reason}; set it to 'off' (or 'auto') for plain rows"
        )
    if asked:
        return [asked, Way.PLAIN], {}
    if config.shared_prompt == "off":
        return [Way.PLAIN], {}
    closed = {way: reason for way, reason in reasons.items() if reason}
    return [*(way for way in reasons if way not in closed), Way.PLAIN], closed


def cheaper(way: Way, entries: Sequence[Encoded], rollouts: Rollouts) -> Way:
    """`way`, or plain rows where so few rows share a prompt that it would save nothing. Both are exact. Which is taken
    follows from lengths alone: a run takes the same each time."""
    if way is Way.PLAIN:
        return way
    prompt, extent = rollouts.prompt.cpu(), scored_extents(rollouts)
    sizes = torch.tensor([len(entries[p]) for p in torch.unique(prompt).tolist()])
    longest, steps = int(sizes.max()), int(extent.max())
    packed, called = int(sizes.sum() + extent.sum()), len(sizes) * longest + len(prompt) * steps
    plain = len(prompt) * (longest + steps)
    cost = 1.0 if way is Way.PACKED and steps >= LONG else SHARED_COST
    return Way.PLAIN if plain <= cost * (packed if way is Way.PACKED else called) else way


def _not_packed(config: Any, family: Family, core: Any) -> str | None:
    """Why rows cannot be packed, or None."""
    if reason := shared_prompt.refusal(core, config.attention):
        return reason
    if family.capabilities.packed is None:
        gaps = {name: gap for name, gap in family.capabilities.gaps.items() if name.startswith("packed")}
        return f"a packed row of {family.model_type!r} does not give the log-probs of plain rows ({gaps})"
    return None


def _not_two_calls(config: Any, family: Family, core: Any) -> str | None:
    if shared_prompt.dropout_of(core):
        return "attention_dropout is not 0; two calls and plain rows would drop different weights"
    if not family.capabilities.prefix_cache:
        return f"responses of {family.model_type!r} that go on from a cache do not have the log-probs of plain rows"
    if config.shared_prompt == "two_calls" and config.gradient_checkpointing:
        return "gradient checkpointing drops the cache that the second call goes on from"
    return None


def lay_out(
    way: Way,
    entries: Sequence[Encoded],
    rollouts: Rollouts,
    device: torch.device,
    family: Family,
    prefills: Sequence[Prefill | None] | None = None,
) -> Rows:
    """entries: of `rollouts.prompts`, as this pass shows them."""
    prompt, actions, lengths = rollouts.prompt.cpu(), rollouts.actions, scored_extents(rollouts)
    if len(prompt):
        family.check_length(int((torch.tensor([len(e) for e in entries])[prompt] + lengths.cpu()).max()))
    if way is Way.PACKED:
        return shared_prompt.pack(entries, prompt, actions, lengths, device, family, prefills)
    if way is Way.TWO_CALLS:
        return _by_prompt(entries, prompt, actions, lengths, device, family)
    shown = [entries[p] for p in prompt.tolist()]
    if family.capabilities.batches is None:
        return one_by_one(shown, actions, lengths, device, family)
    return Plain.of(shown, actions, lengths, device, family)


def _by_prompt(
    entries: Sequence[Encoded], prompt: Tensor, actions: Tensor, lengths: Tensor, device: torch.device, family: Family
) -> Rows:
    """In two calls: all prompts together, or one prompt after the other."""
    if family.capabilities.batches is not None:
        return two_calls.lay_out(entries, prompt, actions, lengths, device, family)
    parts: list[tuple[Tensor, Rows]] = []
    for p in torch.unique(prompt).tolist():
        rows = (prompt == p).nonzero().squeeze(1)
        given = prompt[rows], actions.cpu()[rows], lengths.cpu()[rows]
        parts.append((rows, two_calls.lay_out(entries, *given, device, family)))
    return Parts(parts)
