"""One short run of each modality through the command line, and everything one asks of it afterwards."""

import json

import pytest

from mmrl.training.tracking import read_metrics


def test_it_leaves_plain_files(trained):
    _, run, printed = trained
    names = {p.relative_to(run).as_posix() for p in run.rglob("*")}
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "result.json", "checkpoints/step-000002/policy"}
    assert expected <= names
    assert {"rollouts/step-000001/rows.jsonl", "rollouts/eval-000002/rows.jsonl"} <= names
    assert not any(n.endswith((".pt", ".pkl", ".bin", ".partial")) for n in names)
    assert "held-out reward" in printed


def test_it_writes_down_what_its_data_are(trained):
    _, run, _ = trained
    told = json.loads((run / "data.json").read_text())
    assert told["train"] == told["eval"]
    assert told["train"] == {
        "rows": 4, "source": str(run.parent / "rows.jsonl"), "format": "mmrl", "repeated": 0,
    }  # fmt: skip


def test_every_step_moved_the_weights(trained):
    _, run, _ = trained
    steps = read_metrics(run / "metrics.jsonl")
    assert [m["step"] for m in steps] == [1, 2]
    assert all(m["gradient_norm"] > 0 and m["reward/std"] > 0 for m in steps)
    assert steps[0]["self_check/worst_gap"] < 1e-4


def test_the_frame_cache_is_counted(trained):
    modality, run, _ = trained
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert (modality == "video") == ("cache/hits" in last or "cache/misses" in last)
    if modality == "video":
        assert last["cache/written"] == 4  # four clips, decoded once


def test_evaluate_repeats_the_score_of_the_run(trained, mmrl):
    _, run, _ = trained
    done = mmrl("evaluate", run)
    assert done.code == 0, done.err
    assert "Loading" not in done.err and "Warning" not in done.err, "libraries are quiet"
    scores, after = json.loads(done.out), json.loads((run / "result.json").read_text())["after"]
    assert scores["reward"] == pytest.approx(after["reward"], abs=1e-6)


def test_sample_shows_what_the_checkpoint_does(trained, mmrl, tmp_path):
    modality, run, _ = trained
    done = mmrl("sample", run, "--out", tmp_path / "out", "--prompts", "2", "--count", "2")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["reward"] is not None for row in rows)
    if modality == "flow":
        assert all((tmp_path / "out" / name).exists() for row in rows for name in row["images"])
    else:
        assert all(isinstance(row["output"], str) for row in rows)


def test_export_writes_whole_weights(trained, mmrl, tmp_path):
    modality, run, _ = trained
    done = mmrl("export", run, tmp_path / "whole")
    assert done.code == 0, done.err
    assert (tmp_path / "whole" / ("model_index.json" if modality == "flow" else "config.json")).exists()
    assert not list((tmp_path / "whole").rglob("adapter_config.json"))
    again = mmrl("export", run, tmp_path / "whole")
    assert again.code == 2 and "not empty" in again.err


def test_a_finished_run_says_so(trained, mmrl):
    modality, run, _ = trained
    before = {name: (run / name).read_text() for name in ("metrics.jsonl", "result.json")}
    done = mmrl("train", modality, "--resume", run)
    assert done.code == 0, done.err
    assert "is at step 2 already; give it more with training.steps=" in done.out
    assert before == {name: (run / name).read_text() for name in before}


def test_held_out_scores_are_told_as_they_come(trained):
    _, _, printed = trained
    assert "step 1: held-out reward 0." in printed
