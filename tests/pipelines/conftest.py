"""Tiny bases saved once, and the command line as a user meets it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmrl.pipelines import cli
from tests.pipelines.runs import Bases, save_bases


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
