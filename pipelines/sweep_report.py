"""The table and the plot of a comparison: means over seeds, and how far seeds lie apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from mmrl.training.storage import write_atomically

Row = dict[str, float]
Curves = Mapping[str, Mapping[int, Sequence[Row]]]
COLUMNS = {
    "reward": "reward", "held_out": "other verifier", "pixels": "diversity, pixels",
    "embedding": "diversity, embedding", "drift": "drift", "seconds": "seconds", "calls": "calls", "step": "steps",
}  # fmt: skip
COUNTED = ("seconds", "calls", "step")


def write_comparison(out: Path, by: str, curves: Curves) -> Path:
    """comparison.json, comparison.md and comparison.svg of what has run so far; `by` calls or seconds."""
    done = {name: runs for name, runs in curves.items() if runs}
    write_atomically(out / "comparison.json", json.dumps(done, indent=1))
    write_atomically(out / "comparison.md", f"{table(done)}\n{sooner(done)}".rstrip() + "\n")
    write_atomically(out / "comparison.svg", plot(done, by))
    return out / "comparison.md"


def table(curves: Curves) -> str:
    """Markdown: the end of each recipe's runs, best reward first, under a line of how it began."""
    starts = [runs[0] for each in curves.values() for runs in each.values()]
    names = [name for name in COLUMNS if name in starts[0]]
    lines = ["| recipe | seeds | " + " | ".join(COLUMNS[name] for name in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    lines.append(_line("(before)", 1, {name: [starts[0][name]] for name in names}))
    ends = {recipe: [runs[-1] for runs in each.values()] for recipe, each in curves.items()}
    for recipe in sorted(ends, key=lambda each: -fmean(row["reward"] for row in ends[each])):
        rows = ends[recipe]
        lines.append(_line(recipe, len(rows), {name: [row[name] for row in rows] for name in names}))
    return "\n".join(lines) + "\n"


def _line(recipe: str, seeds: int, values: Mapping[str, Sequence[float]]) -> str:
    cells = [_counted(each) if name in COUNTED else _measured(each) for name, each in values.items()]
    return f"| {recipe if recipe == '(before)' else f'`{recipe}`'} | {seeds} | " + " | ".join(cells) + " |"


def _measured(values: Sequence[float]) -> str:
    """The mean; over several seeds also the least and the largest."""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _counted(values: Sequence[float]) -> str:
    return f"{fmean(values):.0f}"


def reached(rows: Sequence[Row], reward: float, by: str = "seconds") -> float | None:
    """What a run had spent when its reward first was `reward`, straight lines between measurements; None: never."""
    if rows[0]["reward"] >= reward:
        return rows[0][by]
    for before, after in pairwise(rows):
        if after["reward"] >= reward:
            share = (reward - before["reward"]) / (after["reward"] - before["reward"])
            return before[by] + share * (after[by] - before[by])
    return None


def sooner(curves: Curves) -> str:
    """Markdown: what each recipe had spent when its reward was the first recipe's last, seed by seed. Between two
    measurements the reward is taken to rise in a straight line."""
    first, *others = curves
    if not others:
        return ""
    lines = [
        f"| to the last reward of `{first}` | processor seconds | of its own | calls | of its own |",
        "|---|---|---|---|---|",
    ]
    for recipe in others:
        seeds = [seed for seed in curves[first] if seed in curves[recipe]]
        cells = [cell for by in ("seconds", "calls") for cell in _sooner(curves[first], curves[recipe], seeds, by)]
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _sooner(
    first: Mapping[int, Sequence[Row]], other: Mapping[int, Sequence[Row]], seeds: Sequence[int], by: str
) -> tuple[str, str]:
    """What was spent, and which part of what the first recipe spent that is; means over the seeds that got there."""
    spent = [reached(other[seed], first[seed][-1]["reward"], by) for seed in seeds]
    there = [(each, first[seed][-1][by]) for each, seed in zip(spent, seeds, strict=True) if each is not None]
    if not there:
        return "not reached", ""
    mean, own = fmean(each for each, _ in there), fmean(each for _, each in there)
    missed = f", with {len(there)} of {len(seeds)} seeds" if len(there) < len(seeds) else ""
    return f"{mean:.0f}{missed}", f"1 / {own / mean:.1f}" if mean else "0"


def plot(curves: Curves, by: str) -> str:
    """SVG of the reward (left) and the held-out reward (right) over what was spent, means over seeds."""
    from mmrl.pipelines.charts import line_chart

    names = [n for n in ("reward", "held_out") if all(n in r[0] for each in curves.values() for r in each.values())]
    drawn = [line_chart({recipe: _mean_curve(each, by, name) for recipe, each in curves.items()}) for name in names]
    return _beside([(name, chart) for name, chart in zip(names, drawn, strict=True)], list(curves))


def _mean_curve(runs: Mapping[int, Sequence[Row]], by: str, name: str) -> list[tuple[float, float]]:
    shortest = min(map(len, runs.values()))
    each = [[run[i] for run in runs.values()] for i in range(shortest)]
    return [(fmean(row[by] for row in rows), fmean(row[name] for row in rows)) for rows in each]


def _beside(charts: Sequence[tuple[str, str]], recipes: Sequence[str]) -> str:
    """One SVG file of several charts and one legend of its own, since a legend of HTML means nothing there."""
    from html import escape

    from mmrl.pipelines.charts import HEIGHT, WIDTH
    from mmrl.pipelines.palette import SERIES

    lines = -(-len(recipes) // 4)
    width, height = WIDTH * len(charts), HEIGHT + 40 + 18 * lines
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{2 * width}" '
        f'height="{2 * height}" font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
    ]
    place: Callable[[int], tuple[int, int]] = lambda i: (20 + i % 4 * (width // 4), HEIGHT + 40 + i // 4 * 18)  # noqa: E731
    for i, (name, chart) in enumerate(charts):
        inner = chart.split("</svg>")[0].split(">", 1)[1]
        parts.append(f'<text x="{i * WIDTH + 46}" y="14" font-size="11">{COLUMNS[name]}</text>')
        parts.append(f'<svg x="{i * WIDTH}" y="18" width="{WIDTH}" height="{HEIGHT}">{inner}</svg>')
    for i, recipe in enumerate(recipes):
        x, y = place(i)
        parts.append(f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{(SERIES * 9)[i]}"/>')
        parts.append(f'<text x="{x + 14}" y="{y + 1}" font-size="10">{escape(recipe)}</text>')
    return "".join([*parts, "</svg>"])
