"""Checkpoints of a run read together: a later one predicted, and how the last lies to the start."""

import json

import pytest
import torch
from typer.testing import CliRunner

from mmrl.errors import ConfigError
from mmrl.pipelines.cli import app
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import build_policy, train
from mmrl.pipelines.trajectory import read, weights_of


@pytest.fixture(scope="module", params=[None, {"rank": 2}], ids=["full", "lora"])
def run(request, tmp_path_factory):
    """A real run of three checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = read_config(
        {
            "policy": {"model": "asset:tiny_vlm", "max_new_tokens": 3, "lora": request.param},
            "data": {"train": "world:stills?split=train&size=8&difficulty=1", "workers": 0},
            "rewards": [{"name": "accuracy", "isolated": False}],
            "training": {"steps": 3, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-3, "save_every": 1,
                         "keep_checkpoints": 9},
            "run_dir": str(folder),
        }, (), "vlm",
    )  # fmt: skip
    train(config)
    return folder


def test_the_last_step_is_read_off_the_line_that_ends_there(run, tmp_path):
    """What is predicted for the last step has gone about as far as the run had."""
    result = CliRunner().invoke(app, ["extrapolate", str(run), str(tmp_path / "out"), "--step", "3"])
    assert result.exit_code == 0, result.output
    assert "of a tensor's movement" in result.output and (tmp_path / "out" / "config.json").is_file()
    _, steps, weights = read(run)
    assert steps == [0, 1, 2, 3]
    moved = build_policy(read_config({"policy": {"model": str(tmp_path / "out")}, "recipe": "grpo"}, (), "vlm"))
    start = build_policy(read_config({"policy": {"model": "asset:tiny_vlm"}, "recipe": "grpo"}, (), "vlm"))
    before, after = start.trainable_state(), moved.trainable_state()
    distance = sum((after[n] - before[n]).square().sum() for n in before) ** 0.5
    last = sum((w[-1] - w[0]).square().sum() for w in weights.values()) ** 0.5
    assert 0.5 * last < distance < 1.5 * last


def test_a_leap_of_scale_zero_is_the_last_checkpoint(run, tmp_path):
    folder = str(tmp_path / "out")
    arguments = ["extrapolate", str(run), folder, "--method", "next", "--ahead", "1", "--epochs", "1", "--scale", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    moved = build_policy(read_config({"policy": {"model": folder}, "recipe": "grpo"}, (), "vlm")).trainable_state()
    start = build_policy(read_config({"policy": {"model": "asset:tiny_vlm"}, "recipe": "grpo"}, (), "vlm"))
    _, _, weights = read(run)
    for name, tensors in weights.items():
        own = name.replace("base_model.model.", "")
        at = next(n for n in moved if n.endswith(own.removeprefix("model.")))
        assert torch.allclose(moved[at] - start.trainable_state()[at], tensors[-1] - tensors[0], atol=2e-3), name


def test_how_the_update_lies_to_the_weights(run):
    result = CliRunner().invoke(app, ["weights", str(run), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output[result.output.index("{") :])
    assert told["step"] == 3 and told["matrices"]
    for row in told["matrices"].values():
        assert 0 <= row["principal"] <= 1 and row["moved"] >= 0
    assert "median (largest)" in CliRunner().invoke(app, ["weights", str(run)]).output


def test_what_is_trained_is_read_as_what_it_adds(run):
    policy, _, _ = read(run, last_only=True)
    assert all(not n.endswith(("lora_A.weight", "lora_B.weight")) for n in weights_of(policy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "--step"), (["--method", "relx"], "relex"), (["--method", "next", "--ahead", "3"], "needs at least 4")],
)
def test_what_cannot_be_predicted_is_refused(run, tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["extrapolate", str(run), str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)
