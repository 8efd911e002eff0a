"""`mmrl report RUN`: one self-contained HTML page. Curves, what the model did, and where the credit went."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmrl.errors import ConfigError
from mmrl.media import VideoSampling
from mmrl.training.tracking import read_metrics, write_atomically

CHARTS = (
    ("Reward", ("reward/mean",), "reward of the rollouts, mean of a step"),
    ("Held-out", ("eval/success", "eval/reward"), "scores on prompts never trained on"),
    ("Components", ("reward/*/mean",), "named rewards, before they were weighed and combined"),
    (
        "Signal",
        ("signal/active_fraction", "signal/zero_variance_fraction"),
        "rollouts that teach; groups that all scored alike",
    ),
    (
        "Trust region",
        ("ratio/clip_fraction", "ratio/approx_kl"),
        "actions whose gradient was clipped; distance from the rollout policy",
    ),
    ("Regularizers", ("regularizer/*",), "before their coefficient"),
    ("Gradient norm", ("gradient_norm",), "before clipping, mean of a step"),
    ("Length", ("length/mean", "length/truncated_fraction"), "actions of a rollout; share cut at the limit"),
    ("Seconds", ("seconds/*",), "of each stage of a step"),
)
SHOWN_FRAMES = 4
INK = ("#2456a5", "#c2571a", "#2f7d4f", "#8b3f8f", "#8a7a1d", "#356f7e", "#a03a4a", "#5b5b5b")


@dataclass
class Chart:
    title: str
    note: str
    svg: str


def write_report(run: str | Path) -> Path:
    """Render `run/report.html` from the run's plain files; opens without network or server."""
    run = Path(run)
    metrics = read_metrics(run / "metrics.jsonl")
    if not metrics:
        raise ConfigError(f"{run}: no metrics.jsonl with at least one step; is it a run directory?")
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("mmrl.pipelines"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = page.get_template("report.html").render(
        title=run.name,
        config=(run / "config.yaml").read_text() if (run / "config.yaml").exists() else "",
        facts=_facts(run, metrics),
        charts=[c for c in (_chart(*chart, metrics) for chart in CHARTS) if c],
        steps=[_rollouts(folder) for folder in _shown_folders(run)],
        unscored=_unscored(metrics),
    )
    write_atomically(run / "report.html", html)
    return run / "report.html"


def _facts(run: Path, metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = metrics[-1]
    facts = [("steps", str(last["step"]))]
    if (run / "config.yaml").exists():
        config = yaml.safe_load((run / "config.yaml").read_text())
        facts += [
            ("modality", config["modality"]),
            ("recipe", config["recipe"]),
            ("model", str(config["policy"].get("model"))),
        ]
    if (run / "result.json").exists():
        result = json.loads((run / "result.json").read_text())
        for name in ("success", "reward"):
            if name in result["before"] and name in result["after"]:
                facts.append((f"held-out {name}", f"{result['before'][name]:.3f} → {result['after'][name]:.3f}"))
    seconds = sum(v for m in metrics for k, v in m.items() if k.startswith("seconds/"))
    return [*facts, ("seconds", f"{seconds:.0f}"), ("peak memory", f"{last['memory/peak_bytes'] / 2**30:.2f} GiB")]


def _unscored(metrics: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for m in metrics:
        for cause, count in m.get("unscored", {}).items():
            total[cause] = total.get(cause, 0) + count
    return total


def _series(pattern: str, metrics: list[dict[str, Any]]) -> list[str]:
    """Metric names a pattern with one `*` matches."""
    if "*" not in pattern:
        return [pattern]
    head, tail = pattern.split("*")
    names = {
        k for m in metrics for k in m if k.startswith(head) and k.endswith(tail) and len(k) > len(head) + len(tail)
    }
    return sorted(names)


def _chart(title: str, patterns: tuple[str, ...], note: str, metrics: list[dict[str, Any]]) -> Chart | None:
    """An SVG line chart of the named metrics over steps; None where the run has none of them."""
    from matplotlib.figure import Figure

    names = [n for p in patterns for n in _series(p, metrics) if any(n in m for m in metrics)]
    if not names:
        return None
    figure = Figure(figsize=(4.6, 2.5))
    axes = figure.subplots()
    for name, ink in zip(names, INK * 4, strict=False):
        points = [(m["step"], m[name]) for m in metrics if name in m]
        marker = "o" if len(points) < 12 else ""
        axes.plot(*zip(*points, strict=True), color=ink, linewidth=1.6, marker=marker, markersize=3, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e2da", linewidth=0.8)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    if len(names) > 1:
        axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return Chart(title, note, buffer.getvalue()[buffer.getvalue().index("<svg") :])


def _shown_folders(run: Path) -> list[Path]:
    """The first and last saved training steps, and the last evaluation."""
    steps = sorted((run / "rollouts").glob("step-*"))
    evaluations = sorted((run / "rollouts").glob("eval-*"))
    chosen = [*steps[:1], *steps[-1:]] if len(steps) > 1 else steps
    return [*chosen, *evaluations[-1:]]


def _rollouts(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["media"] = [_embedded(folder / name) for name in row["media"]]
        row["images"] = [_embedded(folder / name) for name in row.get("images", [])]
        row["frames"] = [frame for path in row["videos"] for frame in _frames(path)]
        _tint(row["actions"])
    kind, _, number = folder.name.partition("-")
    title = f"{'Held-out prompts after' if kind == 'eval' else 'Rollouts of'} step {int(number)}"
    return {"title": title, "rows": rows}


def _frames(path: str) -> list[str]:
    """A few evenly spread frames of a clip, embedded; none when the file is gone."""
    if not Path(path).exists():
        return []
    from PIL import Image

    from mmrl.data.video import read_clip

    sampling = VideoSampling(fps=None, min_frames=SHOWN_FRAMES, max_frames=SHOWN_FRAMES, factor=4, min_pixels=16)
    frames = read_clip(path, sampling).pixels.permute(0, 2, 3, 1).numpy()
    return [_data_uri(Image.fromarray(frame)) for frame in frames]


def _data_uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _tint(actions: list[dict[str, Any]]) -> None:
    """Colour each action by its credit: blue pushes up, red pushes down, strength relative to the row."""
    largest = max((abs(a.get("credit") or 0.0) for a in actions), default=0.0)
    for action in actions:
        credit = action.get("credit") or 0.0
        strength = abs(credit) / largest if largest else 0.0
        action["color"] = f"rgba({'36, 86, 165' if credit > 0 else '194, 58, 42'}, {0.55 * strength:.2f})"
        action["bar"] = round(100 * strength)


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
