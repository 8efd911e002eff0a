"""The curves of a report: which numbers share an axis, and every other number a run wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.report_rollouts import unprefixed
from mmrl.training.glossary import explain

CHARTS = (
    ("Reward", ("reward/mean",), "rollouts, mean of a step"),
    ("Success", ("success", "success/pass@group"), "share of rollouts, and of prompts with at least one"),
    ("Held-out", ("eval/reward", "eval/success"), "prompts never trained on; step 0 is before training"),
    ("Components", ("reward/*/mean",), "named rewards, before they were weighed and added"),
    ("Signal", ("signal/active_fraction", "signal/zero_variance_fraction"), "rollouts that teach; groups all alike"),
    ("Trust region", ("ratio/clip_fraction", "trust_region/changed_fraction"), "actions clipped, objectives changed"),
    ("KL to the rollout policy", ("ratio/approx_kl",), "how far a step goes, an action"),
    ("Regularizers", ("regularizer/*",), "before their coefficient"),
    ("Gradient norm", ("gradient_norm",), "before clipping, mean of a step"),
    ("Entropy", ("entropy/sampled",), "minus the mean log-prob of the sampled actions"),
    ("Length", ("length/mean",), "actions of a rollout"),
    ("Cut at the limit", ("length/truncated_fraction",), "share of rollouts that did not finish"),
    ("Unscored", ("reward/unscored_fraction",), "share of rollouts whose reward had no answer"),
    ("Credit", ("credit/*",), "what the credit stage silenced or reweighted"),
    ("Learning rate", ("learning_rate",), "of the last optimizer step"),
    ("Seconds", ("seconds/*",), "of each stage of a step"),
    ("Frame cache", ("cache/hit_rate",), "clips read from the cache"),
)
Row = dict[str, Any]


@dataclass
class Chart:
    title: str
    note: str
    svg: str


def main_charts(rows: Sequence[Row]) -> list[Chart]:
    """Every chart the run has numbers for, also where they never change: that says something, too."""
    charts = []
    for title, patterns, note in CHARTS:
        series = {name: points(name, rows) for p in patterns for name in matching(p, rows)}
        if svg := line_chart(unprefixed({short(name): drawn for name, drawn in series.items()})):
            charts.append(Chart(title, note, svg))
    return charts


def other_charts(rows: Sequence[Row]) -> list[Chart]:
    """A chart of its own for each number that has no place above, with what it means."""
    shown = {name for _, patterns, _ in CHARTS for p in patterns for name in matching(p, rows)}
    names = sorted({k for row in rows for k in row} - shown - {"step", "unscored", "rows_by_source"})
    drawn = ((name, line_chart({name: points(name, rows)})) for name in names)
    return [Chart(name, entry.meaning if (entry := explain(name)) else "", svg) for name, svg in drawn if svg]


def points(name: str, rows: Iterable[Row]) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]


def short(name: str) -> str:
    """`reward/accuracy/mean` -> `accuracy`, `seconds/rollout` -> `rollout`."""
    head, _, rest = name.partition("/")
    rest = rest.removesuffix("/mean").replace("_fraction", "").replace("_", " ")
    return rest if rest and rest != "mean" else head.replace("_", " ")


def matching(pattern: str, rows: Iterable[Row]) -> list[str]:
    """Metric names a pattern with at most one `*` matches."""
    known = {k for row in rows for k in row}
    if "*" not in pattern:
        return [pattern] if pattern in known else []
    head, tail = pattern.split("*")
    return sorted(k for k in known if k.startswith(head) and k.endswith(tail) and len(k) > len(head) + len(tail))
