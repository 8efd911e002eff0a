"""tensorboard and wandb on request: a resumed run goes on in the same place."""

import json

import pytest

from mmrl.errors import ConfigError
from mmrl.training import tracking
from mmrl.training.tracking import open_trackers


def run(folder, names, steps, resumed=0):
    trackers = open_trackers(names, folder, {"recipe": "grpo"}, resumed)
    for step in steps:
        for tracker in trackers:
            tracker.log(step, {"reward/mean": step / 10, "unscored": {"timeout": 1}})
    for tracker in trackers:
        tracker.close()
    return trackers


def test_tensorboard_shows_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, ["tensorboard"], (1, 2, 3))
    run(tmp_path, ["tensorboard"], (3, 4), resumed=2)  # the checkpoint was of step 2
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(s.step, round(s.value, 3)) for s in read.Scalars("reward/mean")]
    assert shown == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 0.4),
    ]


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "of-mine")
    _, first = run(tmp_path, ["wandb"], (1, 2))
    _, second = run(tmp_path, ["wandb"], (3,), resumed=2)
    assert first.run.id == second.run.id
    assert first.run.project == "of-mine"
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{first.run.id}"))
    _, anew = run(tmp_path, ["wandb"], (1,))
    assert anew.run.id != first.run.id


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    def absent(*_):
        raise ModuleNotFoundError("wandb")

    monkeypatch.setattr(tracking, "Wandb", absent)
    with pytest.raises(ConfigError, match=r"pip install 'mmrl\[tracking\]'"):
        run(tmp_path, ["wandb"], (1,))


def test_metrics_are_lines(tmp_path):
    run(tmp_path, [], (1, 2, 3))
    run(tmp_path, [], (3,), resumed=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
