"""Every number that code writes into the metrics has an entry that says what it means and what is healthy."""

import re
from pathlib import Path

from mmrl.training.diagnosis import RULES
from mmrl.training.glossary import entries, explain

ROOT = Path(__file__).parents[2]
NO_METRICS = {
    "application",
    "audio",
    "bad",
    "columns",
    "components",
    "compositional",
    "decoder",
    "lost",
    "mmrl",
    "path",
    "runs",
}
"""Heads of strings with a slash that are none: types, paths, keys inside another number's dictionary."""
ROOMS = (
    "mmrl/weights",
    "mmrl/training",
    "mmrl/objective",
    "mmrl/rollout",
    "mmrl/selection",
    "mmrl/policies",
    "pipelines",
    "data",
)


def written() -> dict[str, str]:
    """{metric as the source writes it, braces for what is filled in: the file}.

    What ends in braces is a head alone: the runs of tests/pipelines/test_progress.py are asked for those.
    """
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for name in re.findall(r'"([a-z_]+/[a-z_/@{}.\[\]()]+)"', path.read_text()):
                if name.partition("/")[0] not in NO_METRICS and not name.endswith((".py", ".json", ".jsonl", "/")):
                    found[name] = str(path.relative_to(ROOT))
    return found


def test_every_metric_in_the_source_is_explained():
    names = written()
    assert len(names) > 60
    whole = {name: where for name, where in names.items() if not name.endswith("}")}
    assert {name: where for name, where in whole.items() if explain(re.sub(r"\{[^}]*\}", "x", name)) is None} == {}


def test_the_nearest_entry_explains():
    assert explain("reward/mean").name == "reward/mean"
    assert explain("reward/accuracy/parsed/mean").name == "reward/*/mean"
    assert explain("eval/reward/accuracy").name == "eval/reward/*"
    assert explain("cache/hit_rate").name == "cache/hit_rate" and explain("cache/damaged").name == "cache/*"
    assert explain("nothing/known") is None


def test_entries_are_whole_and_named_once():
    names = [e.name for e in entries()]
    assert len(names) == len(set(names)) and all(name.count("*") <= 1 for name in names)
    assert all(e.meaning and e.healthy for e in entries())
    assert {rule.name for rule in RULES} and explain("diagnosis")
