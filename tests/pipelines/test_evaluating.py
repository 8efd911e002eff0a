"""Scores of what was never trained, and the folder of the second run."""

import json

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.evaluating import evaluate_run
from mmrl.pipelines.folders import next_free
from mmrl.pipelines.run import train
from mmrl.pipelines.steady import TRIES, steady
from tests.pipelines.runs import write_config


def test_the_model_of_a_configuration_scores_as_its_run_before_the_first_step(trained, mmrl):
    """`mmrl evaluate MODALITY CONFIG` is the baseline, to the digit."""
    modality, run, _ = trained
    before = json.loads((run / "result.json").read_text())["before"]
    config = run.parent / "config.yaml"
    done = mmrl("evaluate", modality, config)
    assert done.code == 0, done.err
    scores = json.loads(done.out)
    assert scores["reward"] == pytest.approx(before["reward"], abs=1e-6)


def test_several_samples_give_the_curve_of_pass_at_k(mmrl):
    done = mmrl("evaluate", "vlm", "demo", "--samples", "4", "data.eval_limit=4")
    assert done.code == 0, done.err
    scores = json.loads(done.out)
    assert 0 <= scores["pass@1"] <= scores["pass@2"] <= scores["pass@4"] <= 1


def test_a_run_s_curve_stands_beside_that_of_the_model_it_began_with(trained, mmrl):
    modality, run, _ = trained
    done = mmrl("evaluate", run, "--samples", "2", "data.eval_limit=2")
    assert done.code == 0, done.err
    base = json.loads(done.out)["base"]
    alone = json.loads(
        mmrl("evaluate", modality, run.parent / "config.yaml", "--samples", "2", "data.eval_limit=2").out
    )
    assert base == pytest.approx(alone, abs=1e-6)


def test_an_untrained_model_is_sampled(trained, mmrl, tmp_path):
    modality, run, _ = trained
    done = mmrl("sample", modality, run.parent / "config.yaml", "--out", tmp_path / "out", "--prompts", "2")
    assert done.code == 0, done.err
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 2


def test_a_modality_wants_a_configuration():
    with pytest.raises(ConfigError, match=r"vlm: which configuration\?.*or a run directory"):
        evaluate_run("vlm", ["training.steps=2"])


def test_the_same_command_twice_makes_two_runs(tmp_path, bases, monkeypatch, capsys):
    """Folders are numbered where their name is made of modality and recipe; one that was named outright is refused."""
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path, "vlm", bases, "grpo", steps=1)
    config = read_config(file, ["run_dir=runs/{modality}-{recipe}"], "vlm")
    first, second = train(config), train(config)
    assert [str(r.folder) for r in (first, second)] == ["runs/vlm-grpo", "runs/vlm-grpo-2"]
    assert "runs/vlm-grpo holds a run, which --resume runs/vlm-grpo goes on with" in capsys.readouterr().err
    assert next_free(first.folder).name == "vlm-grpo-3"
    with pytest.raises(ConfigError, match="already holds a run"):
        train(read_config(file, ["run_dir=runs/vlm-grpo"], "vlm"))
    again = train(config.model_copy(update={"run_dir": "runs/vlm-grpo"}), resume="runs/vlm-grpo")
    assert again.start == 1


class TestARunThatTrains:
    """Its checkpoints move on while they are read."""

    def test_what_went_meanwhile_is_read_again_from_what_came(self, tmp_path):
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        (folder / "step-000001").mkdir()
        asked = []

        def read():
            (newest,) = folder.iterdir()
            asked.append(newest.name)
            if len(asked) < 4:  # the run saves its next before this one was read
                newest.rename(folder / f"step-00000{len(asked) + 1}")
                raise FileNotFoundError(newest)
            return newest.name

        assert steady(tmp_path, read) == "step-000004" and len(asked) == 4

    def test_what_is_broken_where_nothing_moves_is_said_at_once(self, tmp_path):
        asked = []
        with pytest.raises(ConfigError, match="damaged"):
            steady(tmp_path, lambda: (asked.append(1), (_ for _ in ()).throw(ConfigError("damaged"))))
        assert len(asked) == 1 < TRIES
