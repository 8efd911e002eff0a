"""Write the generated pages of this folder, methods.md, recipes.md, rewards.md, metrics.md, configuration.md, the
growth table in speed.md, and the counts in README.md. What recipes.md and the counts say of training is what `make
recipes` found, in recipes.json.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 and name the pages that are not current
"""

from __future__ import annotations

import inspect
import json
import re
import statistics
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import mmrl  # noqa: F401  before any library that imports torchvision
from mmrl.foreign import TABLES
from mmrl.foreign.table import Table
from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.methods import methods_json
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.registry import OF_ONE_MODEL
from mmrl.recipes import load_recipe, recipe_names
from mmrl.rewards.accuracy import TASKS
from mmrl.rewards.registry import Reward, columns_of
from mmrl.rewards.registry import registered as rewards_registered
from mmrl.settings import Section
from mmrl.stages import STAGES, StageFunction, registered
from mmrl.training.diagnosis import RULES
from mmrl.training.glossary import GROUPS

FOLDER = Path(__file__).parent
NOTICE = "<!-- Written by `make docs` from the code: change the docstrings, not this page. -->"


def page(title: str, introduction: str, *blocks: str) -> str:
    return "\n\n".join((f"# {title}", NOTICE, introduction, *blocks)) + "\n"


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def shipped() -> list[StageFunction]:
    """The stage functions of this repository, and not those of plugins that happen to be installed or loaded."""
    return [f for f in registered() if f.function.__module__.startswith("mmrl.")]


def shipped_rewards() -> dict[str, Reward]:
    return {n: r for n, r in sorted(rewards_registered().items()) if r.function.__module__.startswith("mmrl.")}


def methods() -> str:
    functions = shipped()
    stages = [s for s in STAGES if any(f.stage == s for f in functions)]
    head = ("method", "what it is", "stages", "formula", "needs", "modalities", "confidence", "source")
    return page(
        "Methods",
        "What `mmrl methods` lists: first every method, then every stage function by the stage it plays. A method in "
        "bold has a recipe of its name. Needs are the columns a function reads beyond the basics, and so the passes "
        "it costs. Confidence: `verified`, the formula was read in the paper or its code; `partly`, some of it; "
        "`reconstructed`, it is ours after the abstract; `ours`, it is no published method.",
        "## All methods\n\n" + table(head, *map(_method, methods_json(shipped()))),
        *_waiting(),
        *(_stage(stage, [f for f in functions if f.stage == stage]) for stage in stages),
    )


def metrics() -> str:
    head = ("metric", "what it is", "healthy", "where it is not")
    groups = (
        f"## {title}\n\n" + table(head, *((f"`{e.name}`", e.meaning, e.healthy, e.do) for e in group))
        for title, group in GROUPS.items()
    )
    rules = (
        (f"`{r.name}`", r.knob[0].upper() + r.knob[1:], ", ".join(r.explains), ", ".join(r.modalities)) for r in RULES
    )
    return page(
        "Metrics",
        "Every number that a run writes into `metrics.jsonl`, one line a step, and sends to trackers. `*` stands for a "
        "reward, a stage function, a cause. What is healthy is a rule of thumb; how a number moves says more than "
        "where it stands.",
        *groups,
        "## Diagnosis\n\nWhat a run finds wrong with itself, in the terminal, in `diagnosis` of its metrics and in the "
        "report. What follows from a finding is not told beside it.\n\n"
        + table(("rule", "what to do", "explains", "modalities"), *rules),
    )


def _waiting() -> Iterator[str]:
    """Recipes that a run refuses as they ship, and in what recipes differ from their sources."""
    methods = [m for m in methods_json(shipped()) if m["recipe"]]
    waits = [(f"`{m['name']}`", "; ".join((*m["asks"], *m["missing"]))) for m in methods if m["missing"] or m["asks"]]
    yield (
        "## Recipes that wait for something\n\nThese are refused when the configuration is read, until it says who "
        "makes a column or gives what only you know. [recipes.md](recipes.md) trains them on declared toy data.\n\n"
        + table(("recipe", "waits for"), *waits)
    )
    differ = [(f"`{m['name']}`", "; ".join(m["deviates"])) for m in methods if m["deviates"]]
    yield "## Known deviations from the sources\n\n" + table(("recipe", "in what it differs"), *differ)


def trained() -> list[dict[str, typing.Any]]:
    """A row for each recipe and modality, as the last `make recipes` found it."""
    return json.loads((FOLDER / "recipes.json").read_text())


def recipes() -> str:
    rows = trained()
    found = {(row["recipe"], row["modality"]) for row in rows}
    new = [f"`{name}` ({m})" for name in recipe_names() for m in load_recipe(name).modalities if (name, m) not in found]
    trains = [row for row in rows if row["trains"]]
    seconds = statistics.median(row["seconds"] for row in trains)
    return page(
        "Recipes",
        "Every recipe in every modality it names, for two steps on the tiny model that ships, with small sizes: what "
        "`make recipes` found. It asks whether all parts of a recipe meet, not whether it helps. `paper` and `run` are "
        "optimizer steps a rollout batch, times epochs, of the authors' run and of this one; what acted is the ratio "
        "and the trust region, which change nothing in a batch's first optimizer step. Where nobody who ships makes "
        "what a recipe reads, declared toy data stood in, as its last column says.",
        f"{_counted(rows)} Median {seconds:.1f} s of processor time a pair."
        + (f" Not run yet: {', '.join(new)}." if new else ""),
        table(
            ("recipe", "modality", "trains", "seconds", "paper", "run", "acted", "toy data"),
            *(_pair(row) for row in rows),
        ),
    )


def _pair(row: dict[str, typing.Any]) -> tuple[str, ...]:
    paper, run = (" x ".join(map(str, row[key])) for key in ("paper", "run"))
    acted = ", ".join(row["acted"]).replace("_", " ")
    trains = "yes" if row["trains"] else f"refused: {row['reason']}"
    return (
        f"`{row['recipe']}`",
        row["modality"],
        trains,
        f"{row['seconds']:.1f}",
        paper,
        run,
        acted,
        "; ".join([*row["toys"], *filter(None, [row.get("note")])]),
    )


def _counted(rows: list[dict[str, typing.Any]]) -> str:
    every, good = {r["recipe"] for r in rows}, {r["recipe"] for r in rows if r["trains"]}
    alone = {r["recipe"] for r in rows if r["trains"] and not r["toys"]}
    pairs = sum(r["trains"] for r in rows)
    return (
        f"{len(good)} of {len(every)} recipes train, in {pairs} of {len(rows)} pairs of recipe and modality; "
        f"{len(alone)} of them with what ships, the others once somebody makes the data they read."
    )


def _method(method: dict[str, typing.Any]) -> tuple[str, ...]:
    name = f"**`{method['name']}`**" if method["recipe"] else f"`{method['name']}`"
    lists = [", ".join(method[key]) for key in ("stages", "needs", "modalities")]
    formula = f"`{method['formula']}`" if method["formula"] else ""
    return (name, method["summary"], lists[0], formula, *lists[1:], method["confidence"], method["paper"])


def _stage(stage: str, functions: list[StageFunction]) -> str:
    return f"## {stage}\n\n" + "\n\n".join(map(_function, functions))


def _function(function: StageFunction) -> str:
    defaults = ", ".join(f"{name}={value!r}" for name, value in function.defaults.items())
    needs = [*sorted(function.needs()), *function.columns()]
    facts = [
        f"needs {', '.join(needs)}" if needs else "",
        f"sees the whole {function.scope}" if function.scope != "group" else "",
        f"{', '.join(function.modalities)} only" if not set(OF_ONE_MODEL) <= set(function.modalities) else "",
        function.confidence,
    ]
    formula = f"\n\n    {function.formula}" if function.formula else ""
    source = f"{function.paper} ({'; '.join(filter(None, facts))})"
    return f"### `{function.name}({defaults})`\n\n{function.summary}{formula}\n\n{source}"


def rewards() -> str:
    rows = []
    for name, reward in shipped_rewards().items():
        columns = columns_of(reward.function, {}, name)
        reads = ", ".join((*columns.required, *(f"{c} (optional)" for c in columns.optional)))
        rows.append((f"`{name}`", reward.summary, reads, _options(reward.function)))
    return page(
        "Rewards",
        "What `rewards:` in a configuration can name, besides your own as `path/to/file.py:function`. Columns are "
        "those of the dataset; options go under `options:`.",
        table(("reward", "what it is worth", "columns", "options"), *rows),
        "## What is read as an answer, and what a truth may look like",
        "By the `task` of a row, which `accuracy` reads; the reward of the same kind reads the same. One parser serves "
        "answer and truth. A truth it cannot read for certain is refused by `mmrl check` and by training, with row and "
        "column.",
        table(
            ("`task` (also)", "an answer", "a truth (`solution`)"),
            *((f"`{name}` ({', '.join(task.aliases)})", task.answer, task.truth) for name, task in TASKS.items()),
        ),
    )


def _options(function: typing.Callable) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(f"{p.name}={p.default!r}" for p in parameters if p.kind is p.KEYWORD_ONLY)


def configuration() -> str:
    sections = [("", RunConfig), ("policy (vlm, video)", LanguagePolicyConfig), ("policy (flow)", FlowPolicyConfig)]
    return page(
        "Configuration",
        "One YAML; a recipe comes first, the file over it, `key=value` on the command line over both. Unknown keys "
        "are errors. The resolved configuration is written into the run.",
        *(block for name, kind in sections for block in _section(name, kind)),
    )


def _section(name: str, kind: type[Section]) -> Iterator[str]:
    """This section, then those inside it."""
    rows, inner = [], []
    for key, info in kind.model_fields.items():
        default = "required" if info.is_required() else f"`{_plain(info.get_default(call_default_factory=True))}`"
        rows.append((f"`{key}`", f"`{_type(info.annotation)}`", default))
        inner += [(f"{name}.{key}".strip("."), part) for part in _sections_in(info.annotation)]
    text = inspect.cleandoc(kind.__doc__ or "")
    yield f"## {name or 'top level'}\n\n```text\n{text}\n```\n\n{table(('key', 'type', 'default'), *rows)}"
    for inner_name, part in inner:
        yield from _section(inner_name, part)


def _sections_in(annotation: typing.Any) -> list[type[Section]]:
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return [annotation]
    return [s for part in typing.get_args(annotation) for s in _sections_in(part)]


def _type(annotation: typing.Any) -> str:
    text = annotation.__name__ if inspect.isclass(annotation) and not typing.get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def _plain(value: typing.Any) -> str:
    return "see below" if isinstance(value, Section) else repr(value)


def readme() -> str:
    """README.md with its counts of methods current."""
    text = (FOLDER.parent / "README.md").read_text()
    recipes = [load_recipe(name) for name in recipe_names()]
    every = sum({"vlm", "video", "flow"} <= set(r.modalities) for r in recipes)
    rows = [(f"`{s}`", str(len(f)), _first_names(f)) for s in STAGES if (f := [x for x in shipped() if x.stage == s])]
    counts = (
        f"{len(recipes)} recipes, {every} of them for language models and generators alike, composed of "
        f"{len(shipped())} stage functions, and {len(shipped_rewards())} rewards. {_counted(trained())} "
        "[docs/recipes.md](docs/recipes.md) has each.\n\n" + table(("stage", "functions", "for example"), *rows)
    )
    return re.sub(
        r"(<!-- counts[^>]*-->\n).*?(<!-- /counts -->)", lambda m: f"{m[1]}{counts}\n{m[2]}", text, flags=re.S
    )


def speed() -> str:
    """speed.md with the tables that benchmarks left: growth, floor, ways, generators and long clips."""
    growth = _measured("growth")
    blocks = {"growth": [_growth(growth["growth"])]}
    by_two = FOLDER.parent / "benchmarks/results/two_threads/bench_growth.json"
    if by_two.exists():
        blocks["two threads"] = [_growth(json.loads(by_two.read_text())["growth"])]
    blocks["writing"] = [_as_it_is(_measured("writing")["a step"])]
    if laws := growth.get("seconds = a size^exponent"):
        head = ("seconds grow as size^x along", "from, to", "x", "x, last two sizes", "x of the floor", "last two")
        keys = ("exponent", "exponent, last two", "of the floor", "of the floor, last two")
        rows = ((r["axis"], f"{r['from']:,} to {r['to']:,}", *(f"{r[k]:.2f}" for k in keys)) for r in laws)
        blocks["growth"].append(table(head, *rows))
    blocks["floor"] = [_as_it_is(_measured("floor")["seconds"])]
    blocks["ways"] = [_as_it_is(_measured("ways")["processor seconds"])]
    blocks["counts"] = [_as_it_is(_measured("flow_counts")["times faster than a plain loop, counted"])]
    loops = ("loop", "cpu_seconds", "of processor time", "fewer operations", "peak_mib")
    for name, file in (("iteration", "flow"), ("iteration_wan", "flow_wan")):
        flow = _measured(file)
        blocks[name] = [_as_it_is([{key: row[key] for key in loops if key in row} for row in flow["an iteration"]])]
        blocks[name].append(_as_it_is(flow["reward after seconds of processor time"]))
    blocks["clips"] = [_as_it_is(_measured("long_clips")["a step of long clips"])]
    text = (FOLDER / "speed.md").read_text()
    for name, tables in blocks.items():
        between = rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)"
        filled = "\n\n".join(tables)
        text = re.sub(between, lambda m, filled=filled: f"{m[1]}\n{filled}\n\n{m[2]}", text, flags=re.S)
    return text


def _measured(name: str) -> dict[str, typing.Any]:
    return json.loads((FOLDER.parent / f"benchmarks/results/bench_{name}.json").read_text())


def _as_it_is(rows: list[dict[str, typing.Any]]) -> str:
    cells = ([row.get(name) for name in rows[0]] for row in rows)
    return table(tuple(rows[0]), *(tuple("" if cell is None else _short(cell) for cell in row) for row in cells))


def _short(value: typing.Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _growth(cells: list[dict[str, typing.Any]]) -> str:
    of = "ours, s of the clock" if cells[0].get("seconds of") == "clock" else "ours, s"
    head = ("cell", of, "times the floor", "MiB", "planned", "TRL, s", "times faster", "share of TRL's MiB")
    head = (*head, "after loading")
    beside = {"TRL": "{:.3g}", "times": "{:.3g}", "share": "{:.2f}", "share after loading": "{:.2f}"}
    rows = [head]
    for cell in cells:
        seconds = cell.get("ours", cell["processor seconds"])
        ours = cell["cell"], f"{seconds:.3g}", f"{cell['times the floor']:.2g}"
        ours += f"{cell['MiB']:,}", f"{cell['planned, MiB']:,}"
        rows.append((*ours, *(form.format(cell[key]) if key in cell else "" for key, form in beside.items())))
    return table(*rows)


def _first_names(functions: list[StageFunction], most: int = 8) -> str:
    names = sorted(f.name for f in functions)
    step = max(1, len(names) // most)
    return ", ".join(f"`{name}`" for name in names[::step][:most])


def coming_from() -> str:
    """What other projects' configurations are called here: the tables that also answer foreign keys."""
    return page(
        "Names of other projects",
        "Every name of a configuration elsewhere: our key, another way to say it, or why there is no such thing. A "
        "foreign key in a configuration of ours is answered from these tables. `mmrl from-trl FILE` carries a TRL "
        "script or its YAML over. How constants differ under one name: [peers.md](peers.md).",
        *(f"## {t.project}: {t.version}\n\n" + table(("name", "here"), *_named(t)) for t in TABLES),
    )


def _named(of: Table) -> Iterator[tuple[str, str]]:
    yield from ((f"`{name}`", said) for name, said in of.rows())


PAGES = {
    "coming_from.md": coming_from,
    "methods.md": methods,
    "recipes.md": recipes,
    "metrics.md": metrics,
    "rewards.md": rewards,
    "configuration.md": configuration,
    "../README.md": readme,
    "speed.md": speed,
}


def main(check: bool) -> int:
    texts = {FOLDER / name: write() for name, write in PAGES.items()}
    stale = [path.name for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    if check:
        if stale:
            print(f"not current: {', '.join(stale)}; run `make docs` and commit")
        return int(bool(stale))
    for path, text in texts.items():
        path.write_text(text)
    print(f"written: {', '.join(stale) or 'nothing new'}")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
