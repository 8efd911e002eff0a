"""`mmrl compare RUN RUN ...`: curves of runs on one axis, what their configurations differ in, their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mmrl.errors import ConfigError
from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.report import read_mapping
from mmrl.pipelines.report_curves import CHARTS, Chart, matching, points, short
from mmrl.pipelines.report_rollouts import inside
from mmrl.training.storage import write_atomically
from mmrl.training.tracking import read_metrics

OF_THE_FOLDER = ("run_dir",)
"""Keys that differ between any two runs and say nothing."""
ABSENT = "not there"


@dataclass(frozen=True)
class Run:
    """settings: the resolved configuration by dotted key. rows: metrics, step 0 with the scores before training."""

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    scores: dict[str, str]


@dataclass(frozen=True)
class Compared:
    runs: list[Run]

    def differences(self) -> dict[str, list[Any]]:
        """{key: its value in each run}, of keys that are not the same in all."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        values = {key: [run.settings.get(key, ABSENT) for run in self.runs] for key in keys}
        return {k: v for k, v in values.items() if any(each != v[0] for each in v) and k not in OF_THE_FOLDER}

    def scores(self) -> dict[str, list[str]]:
        names = dict.fromkeys(name for run in self.runs for name in run.scores)
        return {name: [run.scores.get(name, ABSENT) for run in self.runs] for name in names}

    def charts(self) -> list[Chart]:
        """A chart for each number that several names would share, a line for each run."""
        rows = [row for run in self.runs for row in run.rows]
        charts = []
        for title, patterns, note in CHARTS:
            for name in (name for p in patterns for name in matching(p, rows)):
                drawn = line_chart({run.name: points(name, run.rows) for run in self.runs})
                what = short(name)
                if drawn:
                    charts.append(Chart(title if what == title.lower() else f"{title}: {what}", note, drawn))
        return charts

    def table(self) -> Table:
        table = Table()
        for name in ("", *(run.name for run in self.runs)):
            table.add_column(name, overflow="fold")
        for name, values in {**self.scores(), **self.differences()}.items():
            table.add_row(name, *map(str, values))
        return table


def read_runs(folders: Sequence[Path]) -> Compared:
    """Raises ConfigError for fewer than two, and for a folder without metrics."""
    if len(folders) < 2:
        raise ConfigError(f"compare: expected at least two run directories, got {len(folders)}")
    names = _names(folders)
    return Compared([_read(folder, name) for folder, name in zip(folders, names, strict=True)])


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else whole paths."""
    short_names = [folder.resolve().name for folder in folders]
    return short_names if len(set(short_names)) == len(folders) else [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    rows = read_metrics(inside(folder, folder / "metrics.jsonl"))
    if not rows:
        raise ConfigError(f"{folder}: no metrics.jsonl with at least one step; is it a run directory?")
    result = read_mapping(folder, "result.json")
    before, after = (result.get(key) if isinstance(result.get(key), dict) else {} for key in ("before", "after"))
    named = [k for k in ("success", "reward") if k in after]
    scores = {f"held-out {k}": f"{before.get(k, float('nan')):.3f} -> {after[k]:.3f}" for k in named}
    start = {"step": 0, **{f"eval/{k}": v for k, v in before.items()}}
    return Run(name, dict(_dotted(read_mapping(folder, "config.yaml"))), [start, *rows], scores)


def _dotted(values: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(v, Mapping) and "name" in v for v in value):
            value = {str(v["name"]): {k: each for k, each in v.items() if each not in (None, [], {})} for v in value}
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def write_comparison(compared: Compared, out: Path) -> Path:
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("mmrl.pipelines"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = page.get_template("comparison.html").render(
        names=[run.name for run in compared.runs], scores=compared.scores(), differences=compared.differences(),
        charts=compared.charts(),
    )  # fmt: skip
    write_atomically(out, html)
    return out
