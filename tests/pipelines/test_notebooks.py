"""The notebooks run from top to bottom on the shipped bases, and what is committed is what their sources say."""

import re
from pathlib import Path

import jupytext
import pytest

from notebooks import build

FOLDER = Path(__file__).parents[2] / "notebooks"


def outcome(text):
    """The held-out score before and after."""
    before, after = map(float, re.search(r"held-out \w+ ([\d.]+) -> ([\d.]+)", text).groups())
    return before, after


@pytest.mark.parametrize("name", build.NAMES)
def test_it_runs(name):
    text = build.text_of(build.execute(name, most_steps=4))
    assert all(0 <= score <= 1 for score in outcome(text))
    assert "<polyline" in text
    assert "credit" in text


@pytest.mark.learns
@pytest.mark.parametrize("name", build.NAMES)
def test_the_model_gets_better(name):
    before, after = outcome(build.text_of(build.execute(name)))
    assert after > before


@pytest.mark.parametrize("name", build.NAMES)
def test_the_committed_notebook_is_that_of_its_source(name):
    source, committed = jupytext.read(FOLDER / f"{name}.py"), jupytext.read(FOLDER / f"{name}.ipynb")
    assert [(c.cell_type, c.source) for c in source.cells] == [(c.cell_type, c.source) for c in committed.cells]
    assert all(c.outputs for c in committed.cells if c.cell_type == "code" and "display" in c.source.split("\n")[-1])
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000
