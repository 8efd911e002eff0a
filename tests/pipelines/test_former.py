"""Runs of the version before: their weights are read, going on with one is refused with the way out."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from mmrl.errors import ConfigError
from mmrl.pipelines.cli import app
from mmrl.pipelines.config import read_config
from mmrl.pipelines.former import read_saved
from mmrl.pipelines.run import train

SMALL = ["training.steps=1", "training.prompts_per_step=2", "training.group_size=8", "data.eval_limit=8"]
GONE = {"updates", "check_every", "ahead", "optimizer", "compile", "sharding", "balance", "save_every_minutes"}


def called(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output + "".join(str(done.exception or ""))


@pytest.fixture
def former(tmp_path):
    """A run as the version before left it: its keys, and a checkpoint without digests."""
    run = tmp_path / "old"
    train(read_config("demo", [*SMALL, f"run_dir={run}"], "vlm"))
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["training"] = {k: v for k, v in values["training"].items() if k not in GONE}
    values["training"] |= {"updates_per_step": 1, "max_refills": 4}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    state = next((run / "checkpoints").glob("step-*/state.json"))
    kept = {k: v for k, v in json.loads(state.read_text()).items() if k not in ("files", "sha256")}
    state.write_text(json.dumps(kept))
    return run


def test_its_weights_are_evaluated_and_exported_and_start_a_new_run(former, tmp_path):
    after = json.loads((former / "result.json").read_text())["after"]["success"]
    assert json.loads(called("evaluate", former))["success"] == after
    called("export", former, tmp_path / "weights", "--adapter")
    called("train", "vlm", "demo", *SMALL, f"policy.model={tmp_path / 'weights'}", f"run_dir={tmp_path / 'new'}")
    again = json.loads((tmp_path / "new" / "result.json").read_text())["before"]["success"]
    assert again == pytest.approx(after)


def test_going_on_is_one_line_that_says_how_to_export(former):
    line = rf"version before.*cannot be gone on with; write its weights out \(mmrl export {former}.* FOLDER --adapter\)"
    for arguments in (["vlm", "--resume", former], ["vlm", "demo", "--resume", former]):
        done = CliRunner().invoke(app, ["train", *map(str, arguments)])
        assert done.exit_code and isinstance(done.exception, ConfigError | SystemExit)
    with pytest.raises(ConfigError, match=line) as error:
        train(read_config("demo", [*SMALL, f"run_dir={former}"], "vlm"), resume=former)
    assert "\n" not in str(error.value)


def test_a_generator_of_the_version_before_keeps_its_times_and_gets_no_average_of_today_s_recipe(tmp_path):
    policy = {"model": "asset:tiny_flow", "shift": 3.0, "text_cache": 64}
    training = {"updates_per_step": 4, "max_refills": 4}
    values = {"modality": "flow", "recipe": "flow_grpo_fast", "policy": policy, "training": training}
    assert read_config({**values, "policy": {"model": "-"}, "training": {}}).policy_settings().ema is not None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    config = read_saved(tmp_path / "config.yaml")
    settings = config.policy_settings()
    assert (settings.schedule, settings.shift, settings.ema) == ("linear", 3.0, None)
    assert config.training.updates_per_epoch == 4
