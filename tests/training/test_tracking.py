"""tensorboard and wandb on request: a resumed run goes on in the same place."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.errors import ConfigError
from mmrl.training import trackers as rooms
from mmrl.training.run_log import rows_to_keep
from mmrl.training.trackers import TrackerSpec, markdown_table, open_trackers, read_completions


def run(folder, specs, steps, resumed=0):
    specs = [TrackerSpec(**({"name": spec} if isinstance(spec, str) else spec)) for spec in specs]
    trackers = open_trackers(specs, folder, {"recipe": "grpo"}, resumed)
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

    monkeypatch.setattr(rooms, "Wandb", absent)
    with pytest.raises(ConfigError, match=r"pip install 'mmrl\[tracking\]'"):
        run(tmp_path, ["wandb"], (1,))


def test_metrics_are_lines(tmp_path):
    run(tmp_path, [], (1, 2, 3))
    run(tmp_path, [], (3,), resumed=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]


@pytest.fixture
def rollouts(tmp_path) -> Path:
    """An answer with markup, and a clip of three frames."""
    folder = tmp_path / "rollouts" / "step-000002"
    folder.mkdir(parents=True)
    plain = {"prompt": "how many | <b>?", "solution": 2, "finish": "stop", "group": 0, "images": []}
    frames = [f"output-0001-{i}.png" for i in range(3)]
    for i, name in enumerate(frames):
        Image.new("RGB", (40, 20), (80 * i, 0, 0)).save(folder / name)
    (folder / "output-0001.mp4").write_bytes(b"not looked into")
    Image.new("RGB", (40, 20), "blue").save(folder / "output-0002-0.png")
    rows = [
        {**plain, "output": "two\nor three", "reward": 0.5, "components": {"accuracy": 0.5}},
        {**plain, "output": None, "reward": None, "components": {}, "images": frames, "films": ["output-0001.mp4"]},
        {**plain, "output": None, "reward": 1.0, "components": {}, "images": ["output-0002-0.png"]},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_tensorboard_has_the_answers_the_clips_and_what_is_wrong(tmp_path, rollouts):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, board = open_trackers([TrackerSpec(name="tensorboard", run="mine")], tmp_path, {}, 0)
    board.show(2, rollouts)
    board.log(2, {"reward/mean": 0.5, "diagnosis": {"truncated": "all is cut"}})
    board.close()
    read = EventAccumulator(str(tmp_path / "tensorboard" / "mine")).Reload()
    (table,) = read.Tensors("rollouts/completions/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert table.step == 2 and "two<br>or three" in text and "0.500" in text and "output-0001.mp4" in text
    assert "how many &#124; &lt;b&gt;?" in text, "markup stays text, and a pipe opens no column"
    assert read.Tags()["images"] == ["rollouts/001_reward_unscored", "rollouts/002_reward_1.000"]
    (clip,) = read.Images("rollouts/001_reward_unscored")
    assert (clip.width, clip.height) == (40, 20)
    assert clip.encoded_image_string[:4] == b"GIF8"
    (said,) = read.Tensors("diagnosis/text_summary")
    assert b"all is cut" in said.tensor_proto.string_val[0]


def test_wandb_has_the_project_and_the_table_of_the_configuration(tmp_path, rollouts, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "not this one")
    spec = TrackerSpec(name="wandb", project="cats", run="counting", tags=["small"])
    _, board = open_trackers([spec], tmp_path, {}, 0)
    assert (board.run.project, board.run.name, board.run.tags) == ("cats", "counting", ("small",))
    board.show(2, rollouts)
    board.log(2, {"reward/mean": 0.5})
    board.close()
    kept = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("files/media/**/*") if p.is_file()]
    for kind, end in (("table", ".table.json"), ("videos", ".mp4"), ("images", ".png")):
        assert any(f"/media/{kind}/" in name and name.endswith(end) for name in kept), (kind, kept)


def test_a_long_answer_is_cut_and_says_so(rollouts):
    rows = rollouts / "rows.jsonl"
    first = json.loads(rows.read_text().splitlines()[0]) | {"output": "word " * 1000}
    rows.write_text(json.dumps(first) + "\n")
    assert "... (5,000 characters)" in markdown_table(read_completions(rollouts))


def test_whole_groups_are_kept_the_first_and_those_that_differ_most():
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    reward = torch.tensor([1.0, 1.0, 0.4, 0.6, float("nan"), 0.2, 0.0, 1.0])
    assert rows_to_keep(group, reward, 2).tolist() == [0, 1, 6, 7]
    assert rows_to_keep(group, reward, 3).tolist() == [0, 1, 2, 3, 6, 7]
    assert rows_to_keep(group, reward, 9).tolist() == list(range(8))
    assert rows_to_keep(group, reward, 0).tolist() == []
