"""Where rows come from: who wrote them, seeing what, with which weights, and what a ratio divides by.

A strategy declares the origins of its rows (`Strategy.origins`), `mmrl plan` lists them before a run, every step counts
its rows by them (`rows_by_source` in the metrics, a table in the report), and a saved rollout says its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mmrl.record import BEHAVIOURS, SOURCES, Rollouts

PROMPT, WITHOUT, WITH = "its prompt", "more than its prompt, trains without it", "more than its prompt, trains with it"
DIVISORS = {
    "policy": "the policy's log-probs at collection",
    "given": "the log-probs it came with",
    "one": "probability 1",
}
"""By `Given.behaviour`. The policy's own rows have theirs from sampling, under what they saw."""


@dataclass(frozen=True, order=True)
class Origin:
    """source   who wrote the row, a name of `mmrl.record.SOURCES`
    saw      the prompt it was written under, and the one it trains under where they differ
    divisor  what stands in the denominator of its ratio
    """

    source: str
    saw: str
    divisor: str


OWN = Origin("policy", PROMPT, "its log-probs when sampled")
HINTED = Origin("policy", WITHOUT, "its log-probs when sampled, under what it saw")
SHOWN = Origin("policy", WITH, "its log-probs when sampled, under what it saw")


def brought(source: str, behaviour: str = "policy") -> Origin:
    """Of rows that nobody acts for."""
    return Origin(source, PROMPT, DIVISORS[behaviour])


def origins_of(rollouts: Rollouts) -> list[Origin]:
    """Of each row."""
    assert rollouts.source is not None and rollouts.behaviour is not None
    shown = rollouts.replay["shown"].tolist() if "shown" in rollouts.replay else [False] * len(rollouts)
    added = [p.asks != p.id for p in rollouts.prompts]
    each = zip(rollouts.source.tolist(), rollouts.behaviour.tolist(), rollouts.prompt.tolist(), shown, strict=True)
    return [
        brought(SOURCES[source], BEHAVIOURS[behaviour]) if source else HINTED if hid else SHOWN if added[place] else OWN
        for source, behaviour, place, hid in each
    ]


@dataclass
class Tally:
    """rows  of an origin; counted, trained: of them, in the baseline and in the loss
    oldest  optimizer steps, or steps for a row that was kept, since the weights that wrote one of them; -1: no weights
    of this run wrote it
    """

    rows: int = 0
    counted: int = 0
    trained: int = 0
    oldest: int = -1


def tally(rollouts: Rollouts, counted: Tensor, trained: Tensor, version: int) -> dict[Origin, Tally]:
    """Of this rank's rows. counted, trained (B,) bool; `version`: optimizer steps that were made."""
    found: dict[Origin, Tally] = {}
    ages = _ages(rollouts, version)
    for origin, age, *flags in zip(origins_of(rollouts), ages, counted.tolist(), trained.tolist(), strict=True):
        known = found.setdefault(origin, Tally())
        known.rows += 1
        known.counted, known.trained = known.counted + flags[0], known.trained + flags[1]
        known.oldest = max(known.oldest, age)
    return found


def _ages(rollouts: Rollouts, version: int) -> list[int]:
    assert rollouts.source is not None
    written = rollouts.replay["version"].tolist() if "version" in rollouts.replay else [version] * len(rollouts)
    kept = rollouts.columns["age"].tolist() if "age" in rollouts.columns else [-1] * len(rollouts)
    each = zip(rollouts.source.tolist(), written, kept, strict=True)
    replay = SOURCES.index("replay")
    return [version - int(then) if not source else int(age) if source == replay else -1 for source, then, age in each]


def merged(parts: Iterable[dict[Origin, Tally]], weights: str = "current") -> list[dict[str, Any]]:
    """The tallies of all ranks as plain lines, in the order of `SOURCES`; `weights`: what the policy sampled with."""
    total: dict[Origin, Tally] = {}
    for origin, more in (pair for part in parts for pair in part.items()):
        known = total.setdefault(origin, Tally())
        for name in ("rows", "counted", "trained"):
            setattr(known, name, getattr(known, name) + getattr(more, name))
        known.oldest = max(known.oldest, more.oldest)
    ordered = sorted(total.items(), key=lambda pair: (SOURCES.index(pair[0].source), pair[0]))
    return [
        asdict(origin) | asdict(count) | {"weights": weights if origin.source == "policy" else ""}
        for origin, count in ordered
    ]
