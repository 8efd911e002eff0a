"""`mmrl preferences`: what an ensemble of rewards thinks of the labels of stored pairs, without training on them.

OUT.jsonl    a row a pair: margins by reward, their mean, its strength, and what would become of the label
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import ConfigError, DataError
from mmrl.objective.score_objectives.strength import doubted
from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.run import open_prompts, reward_panel
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel
from mmrl.rollout.preference_pairs import ensemble, pair_of, preference_strength
from mmrl.training.storage import write_atomically

AT_ONCE = 64
"""Pairs that the rewards are called with at once."""


@dataclass(frozen=True)
class Judged:
    """A pair of the data set: its row, its two answers, and what the ensemble says. `strength` NaN: it could not."""

    row: int
    id: str
    prompt: str
    chosen: str
    rejected: str
    margins: dict[str, float]
    mean: float
    strength: float
    verdict: str


def judged_pairs(config: RunConfig, *, bound: float, chosen: str, rejected: str) -> list[Judged]:
    """Every pair of `data.train`, scored by all rewards of the configuration."""
    if not config.data.train:
        raise ConfigError("mmrl preferences: names no data; as in data.train=pairs.jsonl")
    with reward_panel(config) as panel:
        prompts = open_prompts(config.data.train, config.data, panel=panel)
        found: list[Judged] = []
        for start in range(0, len(prompts), AT_ONCE):
            rows = list(range(start, min(start + AT_ONCE, len(prompts))))
            found += _judged(panel, rows, [prompts[row] for row in rows], bound, (chosen, rejected))
        return found


def _judged(
    panel: RewardPanel, rows: Sequence[int], prompts: Sequence[Prompt], bound: float, names: tuple[str, str]
) -> list[Judged]:  # fmt: skip
    pairs = [pair_of(prompt, *names) for prompt in prompts]
    scores = panel.score([text for pair in pairs for text in pair], [p for prompt in prompts for p in (prompt, prompt)])
    judges = ensemble(scores.components, None, "mmrl preferences")
    each = {name: (scores.components[name][0::2] - scores.components[name][1::2]).double() for name in judges}
    mean, strength = preference_strength(torch.stack(list(each.values())))
    wrong, unsure = doubted(strength, bound)
    verdicts = ["unknown" if s.isnan() else "wrong" if w else "unsure" if u else "sure"
                for s, w, u in zip(strength, wrong, unsure, strict=True)]  # fmt: skip
    return [
        Judged(row, prompt.id, prompt.marked, *pair, {name: float(v[i]) for name, v in each.items()}, float(mean[i]),
               float(strength[i]), verdicts[i])
        for i, (row, prompt, pair) in enumerate(zip(rows, prompts, pairs, strict=True))
    ]  # fmt: skip


def mended(pair: Judged, wrong: str, unsure: str, smoothing: float) -> dict[str, Any] | None:
    """The row that is written of a pair, `label` being how likely its chosen answer is the better one; None: none."""
    treatment = {"wrong": wrong, "unsure": unsure, "sure": "keep", "unknown": "keep"}[pair.verdict]
    if treatment == "drop":
        return None
    texts = (pair.rejected, pair.chosen) if treatment == "flip" else (pair.chosen, pair.rejected)
    known = {"margins": pair.margins, "margin": pair.mean, "strength": pair.strength}
    return {
        "row": pair.row, "id": pair.id, "prompt": pair.prompt, "chosen": texts[0], "rejected": texts[1],
        "label": 1 - smoothing if treatment == "soften" else 1.0, "verdict": pair.verdict, "treatment": treatment,
        **{name: _plain(value) for name, value in known.items()},
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """null in place of NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if value != value else value


def write_mended(pairs: Sequence[Judged], out: Path, *, wrong: str, unsure: str, smoothing: float) -> str:
    """Write the rows; what was found, in one sentence."""
    if not pairs:
        raise DataError("mmrl preferences: the data set has no rows")
    rows = [row for pair in pairs if (row := mended(pair, wrong, unsure, smoothing)) is not None]
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    counts = Counter(pair.verdict for pair in pairs)
    known = sorted(pair.strength for pair in pairs if pair.verdict != "unknown")
    middle = f"; median strength {known[len(known) // 2]:.2f}" if known else ""
    said = ", ".join(f"{counts[name]} {name}" for name in ("sure", "unsure", "wrong", "unknown") if counts[name])
    return f"{len(pairs)} pairs: {said}{middle}; {len(rows)} written to {out}"
