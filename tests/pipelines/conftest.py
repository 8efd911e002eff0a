"""Tiny bases saved once, and the command line as a user meets it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from mmrl.pipelines import cli
from tests.pipelines.runs import Bases, save_bases, write_config

RECIPES = {"vlm": "vppo", "video": "tor", "flow": "flow_grpo"}


@dataclass
class Done:
    """code  exit status; out, err  what was printed"""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Bases:
    """Random tiny models in the Hugging Face layout."""
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session", params=RECIPES)
def trained(request, tmp_path_factory, bases) -> tuple[str, Path, str]:
    """(modality, run directory, what was printed) of a run of two steps."""
    modality = request.param
    folder = tmp_path_factory.mktemp(modality)
    config = write_config(folder, modality, bases, RECIPES[modality], steps=2, save_rollouts_every=1, eval_every=1)
    with redirect_stdout(StringIO()) as printed:
        cli.app(["train", modality, str(config)], standalone_mode=False)
    return modality, folder / "run", printed.getvalue()


@pytest.fixture
def mmrl(monkeypatch, capsys):
    """`mmrl("methods", "grpo")`: the command line in this process, with its exit status and output."""
    monkeypatch.setattr(cli.console, "_width", 200)

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["mmrl", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
