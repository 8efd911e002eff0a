"""`mmrl report RUN`: one page. Curves, what is wrong, what the model did, and where the credit went.

The page opens without network or server. It holds its curves and the rollouts it opens with; those of further steps lie
in `report/` beside it and are read when they are asked for, and a click on a picture opens the file in `rollouts/`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines import palette
from mmrl.pipelines.report_curves import main_charts, other_charts
from mmrl.pipelines.report_rollouts import inside, saved_folders, section
from mmrl.pipelines.trust import made_here
from mmrl.recipes import load_recipe, recipe_names
from mmrl.rollout.origins import PROMPT
from mmrl.settings import read_yaml_file
from mmrl.shown import tell
from mmrl.training.diagnosis import spells
from mmrl.training.run_lock import is_held
from mmrl.training.step_metrics import not_acted
from mmrl.training.storage import write_atomically
from mmrl.training.tracking import read_metrics

LARGEST = 1e300
"""Past it, sums and the axes of a chart overflow."""
SHOWN_CAUSES = 20
EMBEDDED = 2 * 2**20
"""Bytes of rollouts inside the page; past it they lie beside it."""
REFRESHED = 10
"""Seconds between two readings of a run that goes on."""


def write_report(run: str | Path, *, trust: bool = False, live: bool = False) -> Path:
    """Render `run/report.html` from the run's plain files.

    Nothing outside the run is read, but frames of the data set's clips: of a run made here, or with `trust`.

    live  the page reads itself again every few seconds
    """
    run = Path(run)
    metrics = [_plain(row) for row in read_metrics(inside(run, run / "metrics.jsonl"))]
    if not metrics:
        raise ConfigError(f"{run}: no metrics.jsonl with at least one step; is it a run directory?")
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("mmrl.pipelines"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["json"] = as_json
    config, result = read_mapping(run, "config.yaml"), read_mapping(run, "result.json")
    before = {"step": 0, **{f"eval/{k}": v for k, v in _held_out(result, "before").items()}}
    curves = [before, *metrics]
    html = page.get_template("report.html").render(
        palette=palette,
        title=title_of_run(run, config),
        method=_method(config),
        config=inside(run, run / "config.yaml").read_text(errors="replace") if config else "",
        scores=_scores(result),
        facts=_facts(config, metrics),
        findings=findings(metrics),
        charts=main_charts(curves),
        others=other_charts(curves),
        rollouts=_rollouts(run, clips=trust or made_here(run)),
        unscored=_unscored(metrics),
        sources=_sources(metrics),
        refresh=REFRESHED if live else 0,
    )
    write_atomically(run / "report.html", html)
    return run / "report.html"


def watch(
    run: str | Path, *, trust: bool = False, every: float = REFRESHED, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """`write_report` again and again until the run has made all its steps, or nobody trains in it any more."""
    run = Path(run)
    while True:
        running = is_held(run)  # asked first: what is written after that stands in the last page
        metrics = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        training = read_mapping(run, "config.yaml").get("training") if metrics else None
        steps = training.get("steps", 0) if isinstance(training, dict) else 0
        whole = bool(metrics) and metrics[-1]["step"] >= steps
        if whole or not running:
            if metrics and not whole:
                tell(f"{run} is not being trained: it ended after step {metrics[-1]['step']} of {steps}")
            return write_report(run, trust=trust)
        if metrics:
            write_report(run, trust=trust, live=True)
        sleep(every)


def as_json(value: Any) -> str:
    """JSON that may stand in a page: no text in it ends a script or begins a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def title_of_run(run: Path, config: dict[str, Any]) -> str:
    return run.name if run.name != config.get("modality") else f"{run.parent.name}/{run.name}"


def read_mapping(run: Path, name: str) -> dict[str, Any]:
    """A YAML or JSON mapping, empty where there is no such file."""
    path = inside(run, run / name)
    values = read_yaml_file(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _held_out(result: dict[str, Any], when: str) -> dict[str, float]:
    values = result.get(when)
    return {k: v for k, v in values.items() if _is_number(v)} if isinstance(values, dict) else {}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """What a run writes into a line of metrics: numbers, counts by cause, findings. Anything else is not shown."""
    causes, found = row.get("unscored"), row.get("diagnosis")
    counted = {str(k): n for k, n in causes.items() if _is_number(n)} if isinstance(causes, dict) else {}
    said = {"diagnosis": {str(k): str(v) for k, v in found.items()}} if isinstance(found, dict) else {}
    kept = {k: v for k, v in row.items() if _is_number(v)}
    return {"step": row["step"], **kept, "unscored": counted, **said, "rows_by_source": _source_lines(row)}


def _source_lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a step's rows, those lines that are whole."""
    texts, numbers = ("source", "saw", "divisor", "weights"), ("rows", "counted", "trained", "oldest")
    lines = found if isinstance(found := row.get("rows_by_source"), list) else []
    return [
        line for line in lines
        if isinstance(line, dict) and all(isinstance(line.get(n), str) for n in texts)
        and all(_is_number(line.get(n)) for n in numbers)
    ]  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def findings(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wrong, and since when; and what was: a rule's spells together, the most frequent first.

    span  `step 3 to 9`, or of several spells `24 of 198 steps, 23 to 184`
    """
    last = metrics[-1]["step"]
    lasting, over = [], dict[str, list[tuple[int, int, str]]]()
    for name, first, final, said in spells(metrics):
        if final == last:
            lasting.append({"span": _span(first, final), "said": said, "open": True})
        else:
            over.setdefault(name, []).append((first, final, said))
    steps = {name: sum(b - a + 1 for a, b, _ in spans) for name, spans in over.items()}
    gone = [
        {
            "span": _span(spans[0][0], spans[-1][1], steps[name] if len(spans) > 1 else 0, last),
            "said": spans[-1][2],
            "open": False,
        }
        for name, spans in over.items()
    ]
    return [*lasting, *(each for _, each in sorted(zip(steps.values(), gone, strict=True), key=lambda e: -e[0]))]


def _span(first: int, final: int, steps: int = 0, of: int = 0) -> str:
    """steps  in which it was so, where that is not all from the first to the final one"""
    if steps:
        return f"{steps} of {of} steps, {first} to {final}"
    return f"step {first}" if first == final else f"step {first} to {final}"


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


def _sources(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the whole run by who wrote them, seeing what, and what their ratio divides by; with the oldest weights.
    Empty where all were the policy's own, of their step."""
    total: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in (line for m in metrics for line in m["rows_by_source"]):
        names = tuple(line[name] for name in ("source", "saw", "weights", "divisor"))
        known = total.setdefault(names, dict.fromkeys(("rows", "counted", "trained"), 0) | {"oldest": -1})
        for name in ("rows", "counted", "trained"):
            known[name] += line[name]
        known["oldest"] = max(known["oldest"], line["oldest"])
    lines = [dict(zip(("source", "saw", "weights", "divisor"), k, strict=True)) | v for k, v in total.items()]
    plain = all(line["source"] == "policy" and line["saw"] == PROMPT and line["oldest"] <= 0 for line in lines)
    return [] if plain else lines


# ---- what the model did


def _rollouts(run: Path, *, clips: bool) -> dict[str, Any]:
    """All saved rollouts: an index, those the page opens with, and files in `report/` for the rest.

    Inside go the last step, the last evaluation, and the first of each, as far as EMBEDDED allows.
    """
    folders = saved_folders(run)
    steps = [f for f in folders if f.name.startswith("step")]
    evaluations = [f for f in folders if f.name.startswith("eval")]
    order = [*steps[-1:], *evaluations[-1:], *evaluations[:1], *steps[:1], *folders]
    embedded, index, used = {}, {}, 0
    for folder in dict.fromkeys(order):
        shown = section(run, folder, clips=clips)
        if shown is None:
            continue
        text = as_json(shown)
        index[folder.name] = {"name": folder.name, "title": shown["title"]}
        if used + len(text) <= EMBEDDED:
            used += len(text)
            embedded[folder.name] = shown
        else:
            (inside(run, run / "report")).mkdir(exist_ok=True)
            write_atomically(inside(run, run / "report" / f"{folder.name}.js"), f"mmrlRollouts({text});\n")
    return {"index": [index[f.name] for f in folders if f.name in index], "sections": embedded}
