"""A demo that is told to stop says where it stands, and begins no other modality."""

import signal
from io import StringIO

import pytest
from rich.console import Console

from mmrl.pipelines import demo
from mmrl.training.trainer import Result


def test_a_signal_ends_the_whole_demo(tmp_path, monkeypatch):
    begun = []

    def stopped(config, report, kept):
        begun.append(config.modality)
        return Result(58, {"success": 0.4}, {}, interrupted=True, signal=signal.SIGTERM)

    monkeypatch.setattr(demo, "train", stopped)
    console = Console(file=StringIO(), width=200)
    with pytest.raises(SystemExit) as stop:
        demo.run_demo(tmp_path, 0, None, console)
    assert stop.value.code == 128 + signal.SIGTERM and begun == ["vlm"]
    assert "interrupted in vlm, after step 58; it goes on with `mmrl train vlm --resume" in console.file.getvalue()
    assert not (tmp_path / "summary.json").exists()
