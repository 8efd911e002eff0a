"""`mmrl preferences`: an ensemble of rewards reads stored pairs, and mends their labels."""

import json

import pytest
from typer.testing import CliRunner

from mmrl.errors import ConfigError, DataError
from mmrl.pipelines.cli import app
from mmrl.pipelines.preferences import Judged, mended

REWARDS = """
def length(completions):
    return [float(len(text)) for text in completions]

def words(completions):
    return [float(len(text.split())) for text in completions]

def shrugs(completions):
    return [None if "?" in text else 1.0 for text in completions]
"""
PAIRS = [("one two three", "a"), ("a", "one two three"), ("a b", "abcdef"), ("no", "no")]


@pytest.fixture
def asked(tmp_path):
    rows = [{"prompt": f"Question {i}?", "chosen": a, "rejected": b} for i, (a, b) in enumerate(PAIRS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(REWARDS)

    def run(*names, options=()):
        rewards = ", ".join(f'{{name: "{tmp_path}/mine.py:{name}", isolated: false}}' for name in names)
        arguments = ["preferences", str(tmp_path / "pairs.jsonl"), str(tmp_path / "out.jsonl"), f"rewards=[{rewards}]"]
        done = CliRunner().invoke(app, [*arguments, *options])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output, [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


def test_labels_are_turned_around_softened_and_trusted(asked):
    """Margins (12, 2), (-12, -2), (-3, 1), (0, 0): means 7, -7, -1, 0 over deviations 5, 5, 2, 0."""
    said, rows = asked("length", "words")
    assert "4 pairs: 1 sure, 2 unsure, 1 wrong" in said and "4 written" in said
    assert [row["strength"] for row in rows] == pytest.approx([1.4, -1.4, -0.5, 0], abs=1e-5)
    assert [row["label"] for row in rows] == [1, 1, 0.8, 0.8]
    assert (rows[1]["chosen"], rows[1]["rejected"]) == PAIRS[0] and rows[1]["treatment"] == "flip"
    assert rows[2]["margins"] == {"length": -3, "words": 1} and rows[2]["row"] == 2
    assert rows[3]["prompt"] == "Question 3?"


def test_what_is_dropped_is_not_written(asked):
    said, rows = asked("length", "words", options=["--wrong", "drop", "--unsure", "keep", "--bound", "0.4"])
    assert [row["row"] for row in rows] == [0, 3] and "2 wrong" in said


def test_one_reward_is_no_ensemble_and_a_treatment_has_a_name(asked):
    with pytest.raises(ConfigError, match=r"2 or more reward models, and here are \['length'\]"):
        asked("length")
    with pytest.raises(ConfigError, match="--wrong: unknown treatment 'invert'"):
        asked("length", "words", options=["--wrong", "invert"])
    with pytest.raises(DataError, match="column 'worse' holds 0 texts"):
        asked("length", "words", options=["--rejected", "worse"])


def test_a_pair_nobody_could_judge_is_kept_and_says_so():
    pair = Judged(0, "p", "Which?", "a", "b", {"x": float("nan"), "y": 1.0}, float("nan"), float("nan"), "unknown")
    row = mended(pair, "flip", "soften", 0.2)
    assert row["strength"] is None and row["margins"] == {"x": None, "y": 1.0} and row["label"] == 1
