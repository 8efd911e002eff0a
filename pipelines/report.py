"""`mmrl report RUN`: one self-contained HTML page. Curves, what the model did, and where the credit went."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError, MMRLError
from mmrl.media import VideoSampling
from mmrl.pipelines import palette
from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.trust import made_here
from mmrl.recipes import load_recipe, recipe_names
from mmrl.settings import read_yaml_file
from mmrl.shown import tell
from mmrl.training.step_metrics import not_acted
from mmrl.training.storage import write_atomically
from mmrl.training.tracking import read_metrics

CHARTS = (
    ("Reward", ("reward/mean", "success"), "rollouts, mean of a step"),
    ("Held-out", ("eval/reward", "eval/success"), "prompts never trained on; step 0 is before training"),
    ("Components", ("reward/*/mean",), "named rewards, before they were weighed and added"),
    ("Signal", ("signal/active_fraction", "signal/zero_variance_fraction"), "rollouts that teach; groups all alike"),
    ("Trust region", ("ratio/clip_fraction", "ratio/approx_kl"), "actions clipped; distance from the rollout policy"),
    ("Regularizers", ("regularizer/*",), "before their coefficient"),
    ("Gradient norm", ("gradient_norm",), "before clipping, mean of a step"),
    ("Entropy", ("entropy/sampled",), "minus the mean log-prob of the sampled actions"),
    ("Length", ("length/mean",), "actions of a rollout"),
    ("Cut at the limit", ("length/truncated_fraction",), "share of rollouts that did not finish"),
    ("Credit", ("credit/*",), "what the credit stage silenced or reweighted"),
    ("Seconds", ("seconds/*",), "of each stage of a step"),
    ("Frame cache", ("cache/hit_rate",), "clips read from the cache"),
)
LARGEST = 1e300
"""Past it, sums and the axes of a chart overflow."""
SHOWN_FRAMES = 4
SHOWN_CAUSES = 20
LARGEST_FILM = 4 * 2**20
"""Bytes of a generated video that plays inside the page; of a larger one frames are shown, and its file named."""


@dataclass
class Chart:
    title: str
    note: str
    svg: str


def write_report(run: str | Path, *, trust: bool = False) -> Path:
    """Render `run/report.html` from the run's plain files; opens without network or server.

    Nothing outside the run is read, but frames of the data set's clips: of a run made here, or with `trust`.
    """
    run = Path(run)
    metrics = [_plain(row) for row in read_metrics(_inside(run, run / "metrics.jsonl"))]
    if not metrics:
        raise ConfigError(f"{run}: no metrics.jsonl with at least one step; is it a run directory?")
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("mmrl.pipelines"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    config, result = _read(run, "config.yaml"), _read(run, "result.json")
    sections = [_section(run, folder, clips=trust or made_here(run)) for folder in _shown_folders(run)]
    html = page.get_template("report.html").render(
        palette=palette,
        title=run.name if run.name != config.get("modality") else f"{run.parent.name}/{run.name}",
        method=_method(config),
        config=_inside(run, run / "config.yaml").read_text(errors="replace") if config else "",
        scores=_scores(result),
        facts=_facts(config, metrics),
        charts=_charts(metrics, result),
        steps=[section for section in sections if section is not None],
        unscored=_unscored(metrics),
    )
    write_atomically(run / "report.html", html)
    return run / "report.html"


def _inside(run: Path, path: Path) -> Path:
    """`path`, which must not lead out of the run, through links neither. Raises ConfigError."""
    if not path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{path} leads outside the run; it is not read")
    return path


def _read(run: Path, name: str) -> dict[str, Any]:
    """A YAML or JSON mapping, empty where there is no such file."""
    path = _inside(run, run / name)
    values = read_yaml_file(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _held_out(result: dict[str, Any], when: str) -> dict[str, float]:
    values = result.get(when)
    return {k: v for k, v in values.items() if _is_number(v)} if isinstance(values, dict) else {}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """What a run writes into a line of metrics: numbers, and counts by cause. Anything else is not shown."""
    causes = row.get("unscored")
    counted = {str(k): n for k, n in causes.items() if _is_number(n)} if isinstance(causes, dict) else {}
    return {"step": row["step"], **{k: v for k, v in row.items() if _is_number(v)}, "unscored": counted}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _section(run: Path, folder: Path, clips: bool) -> dict[str, Any] | None:
    """A section of the page; None, and a line that says so, for a folder that no whole run wrote."""
    try:
        return rollout_section(_inside(run, folder), clips=clips)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MMRLError) as error:
        tell(f"{folder} is left out: {type(error).__name__}: {error}")
        return None


def _method(config: dict[str, Any]) -> str:
    """What was trained with, in one sentence."""
    name = config.get("recipe")
    if name not in recipe_names():
        return ""
    recipe = load_recipe(name)
    return f"{recipe.title}. {recipe.summary} ({recipe.paper})"


def _scores(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, before, after) of the held-out scores."""
    before, after = _held_out(result, "before"), _held_out(result, "after")
    names = [n for n in ("success", "reward") if n in after]
    return [(f"held-out {n}", f"{before[n]:.3f}" if n in before else "", f"{after[n]:.3f}") for n in names]


def _facts(config: dict[str, Any], metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = metrics[-1]
    seconds = sum(v for m in metrics for k, v in m.items() if k.startswith("seconds/") and isinstance(v, int | float))
    facts: list[tuple[str, str]] = [(k, config[k]) for k in ("modality", "recipe") if k in config]
    policy = config.get("policy")
    facts += [("model", str(policy.get("model")))] if isinstance(policy, dict) else []
    facts += [("steps", str(last["step"])), ("rollouts", f"{sum(m.get('rollouts', 0) for m in metrics):,}")]
    facts += [("without effect", sentence)] if (sentence := not_acted(metrics)) else []
    return [
        *facts,
        ("seconds", f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"),
        ("peak memory", f"{last.get('memory/peak_bytes', 0) / 2**30:.2f} GiB"),
    ]


def _unscored(metrics: list[dict[str, Any]]) -> dict[str, int]:
    """Rollouts by cause, the most frequent first; those past the table's end as one row."""
    total: Counter[str] = Counter()
    for m in metrics:
        total.update(m.get("unscored", {}))
    shown = dict(total.most_common(SHOWN_CAUSES))
    rest = {f"{len(total) - SHOWN_CAUSES} further causes": total.total() - sum(shown.values())}
    return shown | (rest if len(total) > SHOWN_CAUSES else {})


# ---- curves


def _charts(metrics: list[dict[str, Any]], result: dict[str, Any]) -> list[Chart]:
    """Every chart the run has numbers for; a single component or a constant length says nothing new."""
    before = {"step": 0, **{f"eval/{k}": v for k, v in _held_out(result, "before").items()}}
    charts = []
    for title, patterns, note in CHARTS:
        names = [n for p in patterns for n in _matching(p, metrics)]
        series = {
            n: [(m["step"], m[n]) for m in (before, *metrics) if isinstance(m.get(n), int | float)] for n in names
        }
        flat = len({y for points in series.values() for _, y in points}) < 2
        if (title == "Components" and len(series) < 2) or (flat and title in ("Length", "Cut at the limit", "Credit")):
            continue
        named = unprefixed({_short(name): points for name, points in series.items()})
        if svg := line_chart(named):
            charts.append(Chart(title, note, svg))
    return charts


def _short(name: str) -> str:
    """`reward/accuracy/mean` -> `accuracy`, `seconds/rollout` -> `rollout`."""
    head, _, rest = name.partition("/")
    rest = rest.removesuffix("/mean").replace("_fraction", "").replace("_", " ")
    return rest if rest and rest != "mean" else head.replace("_", " ")


def unprefixed(named: dict[str, Any]) -> dict[str, Any]:
    """`{"compositional/color": 1, "compositional/count": 0}` -> `{"color": 1, "count": 0}`, where all share a head.
    The reward of that name is their sum and stays under it."""
    heads = {name.partition("/")[0] for name in named}
    if len(named) < 2 or len(heads) > 1:
        return named
    return {name.partition("/")[2] or name: value for name, value in named.items()}


def _matching(pattern: str, metrics: list[dict[str, Any]]) -> list[str]:
    """Metric names a pattern with at most one `*` matches."""
    known = {k for m in metrics for k in m}
    if "*" not in pattern:
        return [pattern] if pattern in known else []
    head, tail = pattern.split("*")
    return sorted(k for k in known if k.startswith(head) and k.endswith(tail) and len(k) > len(head) + len(tail))


# ---- what the model did


def _shown_folders(run: Path) -> list[Path]:
    """The first and last saved training steps, and the last evaluation."""
    whole = [p for p in sorted((run / "rollouts").glob("*-*")) if (p / "rows.jsonl").is_file()]
    steps = [p for p in whole if p.name.startswith("step-")]
    evaluations = [p for p in whole if p.name.startswith("eval-")]
    chosen = [*steps[:1], *steps[-1:]] if len(steps) > 1 else steps
    return [*chosen, *evaluations[-1:]]


def rollout_section(folder: Path, *, clips: bool = True) -> dict[str, Any]:
    """One section of the page: rows by group, the best first, credit on one scale; `clips` with frames of videos."""
    text = _inside(folder, folder / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    largest = max((abs(a.get("credit") or 0.0) for row in rows for a in row["actions"]), default=0.0)
    for row in rows:
        row["components"] = unprefixed(row["components"])
        row["outputs"] = [_embedded(folder, name) for name in row.get("images", [])]
        row["sounds"] = [_embedded(folder, name, "audio/wav") for name in row.get("sounds", [])]
        row["films"] = [_film(folder, name) for name in row.get("films", [])]
        for action in row["actions"]:
            _tint(action, largest)
    groups = []
    for _, members in groupby(sorted(rows, key=lambda r: r["group"]), key=lambda r: r["group"]):
        ordered = sorted(members, key=lambda r: -(r["reward"] if r["reward"] is not None else float("inf")))
        first = ordered[0]
        groups.append(
            {
                "prompt": first["prompt"],
                "solution": first["solution"],
                "media": [_embedded(folder, name) for name in first["media"]],
                "frames": [data_uri(frame) for path in first["videos"] if clips for frame in clip_frames(path)],
                "members": ordered,
            }
        )
    kind, _, number = folder.name.partition("-")
    title = f"{'Held-out prompts after' if kind == 'eval' else 'Rollouts of'} step {int(number)}"
    pictured = any(row["outputs"] or row["sounds"] for row in rows)  # then a prompt's images are what it starts from
    return {"title": title, "groups": groups, "credit": kind != "eval", "pictured": pictured}


def _film(folder: Path, name: str) -> dict[str, Any]:
    """A video to play inside the page, or only the name of a large one."""
    size = _inside(folder, folder / name).stat().st_size
    played = _embedded(folder, name, "video/mp4") if size <= LARGEST_FILM else None
    return {"played": played, "file": f"{folder.name}/{name}", "megabytes": size / 1e6}


def _tint(action: dict[str, Any], largest: float) -> None:
    """Colour and signed height of one action: blue is made likelier, red less likely; 1 is the section's largest."""
    credit = action.get("credit") or 0.0
    share = credit / largest if largest else 0.0
    action["color"] = palette.tint(palette.signed(share), 0.6 * abs(share) ** 0.5)
    action["share"] = round(100 * share, 1)


def clip_frames(clip: Any, count: int = SHOWN_FRAMES) -> list[Any]:
    """`count` evenly spread frames of a clip, as PIL images; none when the file is gone."""
    if not Path(getattr(clip, "path", clip)).exists():
        return []
    from PIL import Image

    from mmrl.data.video import read_clip

    sampling = VideoSampling(fps=None, min_frames=count, max_frames=count, factor=4, min_pixels=16)
    return [Image.fromarray(frame) for frame in read_clip(clip, sampling).pixels.permute(0, 2, 3, 1).numpy()]


def data_uri(image: Any) -> str:
    """A PIL image as PNG inside an address."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _embedded(folder: Path, name: str, kind: str = "image/png") -> str:
    """A file of the folder's own, by its bare name."""
    path = _inside(folder, folder / name)
    if Path(name).name != name:
        raise ConfigError(f"{folder / 'rows.jsonl'} names {name!r}; expected a file beside it")
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()
