"""What a month of GPU time rests on, through the real command line: kill -9, Ctrl-C, and rewards that misbehave.

A reward can be told to wait in a certain call, so a run is killed or interrupted at a known moment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from mmrl.errors import ConfigError, DataError, RewardError
from mmrl.pipelines.cli import app
from mmrl.training.tracking import read_metrics
from tests.data.clips import cut_short
from tests.pipelines.runs import save_bases, timeless, write_config

ROOT = Path(__file__).parents[2]
RECIPES = {"vlm": "vppo", "video": "tor", "flow": "flow_grpo"}
FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return save_bases(tmp_path_factory.mktemp("bases"))


def train_here(config: Path, modality: str, *arguments: str) -> None:
    """`mmrl train` in this process."""
    with redirect_stdout(StringIO()):
        app(["train", modality, str(config), *arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, bases):
    """`straight(modality)`: the run directory of four steps without interruption."""
    made: dict[str, Path] = {}

    def run(modality: str) -> Path:
        if modality not in made:
            folder = tmp_path_factory.mktemp(modality)
            train_here(write_config(folder, modality, bases, RECIPES[modality], save_every=2), modality)
            made[modality] = folder / "run"
        return made[modality]

    return run


def start(config: Path, modality: str, hold_at_call: int) -> subprocess.Popen:
    """`mmrl train` in its own process group, once its reward waits in that call."""
    (config.parent / "hold").write_text(str(hold_at_call))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "mmrl", "train", modality, str(config)],
        env=environment, cwd=config.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not (config.parent / "held").exists():
        if run.poll() is not None or time.monotonic() > limit:
            run.kill()
            pytest.fail(f"the run did not get there: {run.communicate()[0][-2000:]}")
        time.sleep(0.02)
    return run


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics equal but for times, weights, moments and state equal to the last bit."""
    assert timeless(one) == timeless(other)
    assert (one / "result.json").read_text() == (other / "result.json").read_text()
    for name in FILES:
        last = Path("checkpoints") / "step-000004" / name
        assert _told(one / last) == _told(other / last), name


def card_of(run: Path) -> str:
    """The card of a run's last checkpoint, without the place of its files."""
    return (run / "checkpoints/step-000004/policy/README.md").read_text().replace(str(run.parent), "")


def _told(path: Path) -> bytes | dict:
    """A file's bytes; of the state all but the digest of the model's card, which tells where the run's files lie."""
    if path.name != "state.json":
        return path.read_bytes()
    state = json.loads(path.read_text())
    assert state.pop("sha256") and state["files"].pop("policy/README.md")
    return state


@pytest.mark.parametrize("modality", RECIPES)
def test_killed_and_resumed_equals_never_killed(tmp_path, bases, straight, modality):
    config = write_config(tmp_path, modality, bases, RECIPES[modality], save_every=2)
    calls_before_step_4 = 1 + 3  # the evaluation before training, and three steps
    run = start(config, modality, calls_before_step_4 + 1)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    (tmp_path / "hold").unlink()
    assert [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    train_here(config, modality, "--resume", str(tmp_path / "run"))
    assert_same_run(straight(modality), tmp_path / "run")
    assert card_of(tmp_path / "run") == card_of(straight(modality))


@pytest.mark.parametrize("advantage", ["durian", "dcpo_smooth"])
def test_killed_with_adapters_and_functions_that_remember(tmp_path, bases, advantage):
    """Durian compares difficulties across the batch; DCPO smooths with what it remembers of every prompt. Both with
    LoRA and a KL to the model without its adapter."""

    def configured(name: str) -> Path:
        config = write_config(tmp_path / name, "vlm", bases, "grpo", save_every=2)
        values = yaml.safe_load(config.read_text())
        values["policy"]["lora"] = {"rank": 4, "alpha": 8}
        values["objective"] = {"advantage": advantage, "regularizers": [{"name": "kl", "coefficient": 0.1}]}
        config.write_text(yaml.safe_dump(values))
        return config

    train_here(configured("straight"), "vlm")
    config = configured("killed")
    run = start(config, "vlm", hold_at_call=1 + 3 + 1)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    (config.parent / "hold").unlink()
    train_here(config, "vlm", "--resume", str(tmp_path / "killed" / "run"))
    assert_same_run(tmp_path / "straight" / "run", tmp_path / "killed" / "run")


def test_decoding_ahead_changes_nothing(tmp_path, bases, straight):
    config = write_config(tmp_path, "video", bases, RECIPES["video"], save_every=2)
    train_here(config, "video", "data.workers=0")
    assert_same_run(straight("video"), tmp_path / "run")


def test_a_sampler_that_remembers_is_resumed(tmp_path, bases, straight):
    run = tmp_path / "run"
    config = write_config(tmp_path, "vlm", bases, RECIPES["vlm"], save_every=2)
    sampler = ("prompts=spo_single_stream", "prompts.keep=0.5")
    train_here(config, "vlm", *sampler)
    shutil.copytree(run, tmp_path / "once")
    train_here(config, "vlm", *sampler, "--resume", f"{run}/checkpoints/step-000002")
    assert_same_run(tmp_path / "once", run)
    assert timeless(run) != timeless(straight("vlm"))
    with pytest.raises(ConfigError, match=r"prompts\.name='spo_single_stream', not 'shuffled'"):
        train_here(config, "vlm", "--resume", str(run))


def test_a_clip_that_cannot_be_decoded_stops_the_step_that_needs_it(tmp_path, bases):
    """The same error at the same step, decoded ahead or not."""
    stops = {}
    for workers in (0, 2):
        config = write_config(tmp_path / str(workers), "video", bases, RECIPES["video"])
        cut_short(config.parent / "green.mp4", config.parent / "green.mp4")
        with pytest.raises(DataError) as error:
            train_here(config, "video", f"data.workers={workers}", "data.eval=null", "training.prompts_per_step=1")
        metrics = config.parent / "run" / "metrics.jsonl"
        steps = [m["step"] for m in read_metrics(metrics)] if metrics.exists() else []
        stops[workers] = steps, str(error.value).replace(str(config.parent), "")
    assert stops[0] == stops[2]
    steps, message = stops[0]
    assert steps and "green.mp4" in message


def test_another_seed_is_another_run(tmp_path, bases, straight):
    """The comparison above can fail."""
    config = write_config(tmp_path, "vlm", bases, RECIPES["vlm"], save_every=2, seed=1)
    train_here(config, "vlm")
    with pytest.raises(AssertionError):
        assert_same_run(straight("vlm"), tmp_path / "run")


def test_ctrl_c_finishes_the_step_saves_and_can_be_continued(tmp_path, bases, straight):
    config = write_config(tmp_path, "vlm", bases, RECIPES["vlm"], save_every=2)
    run = start(config, "vlm", hold_at_call=1 + 3)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the whole group
    (tmp_path / "hold").unlink()
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 130, printed
    assert "interrupted after step 3, saved; continue with --resume" in " ".join(printed.split())
    assert "Traceback" not in printed
    assert (tmp_path / "run" / "checkpoints" / "step-000003" / "state.json").exists()
    with redirect_stdout(StringIO()):  # without naming the configuration: the run has it
        app(["train", "vlm", "--resume", str(tmp_path / "run")], standalone_mode=False)
    assert_same_run(straight("vlm"), tmp_path / "run")


def test_a_checkpoint_is_not_resumed_as_another_run(straight):
    run = straight("vlm")
    metrics = (run / "metrics.jsonl").read_text()
    for change, named in (("recipe=gspo", "recipe='vppo'"), ("policy.lora={rank: 4}", "policy.lora=None")):
        with pytest.raises(ConfigError, match=named):
            train_here(run / "config.yaml", "vlm", change, "--resume", str(run))
    assert (run / "metrics.jsonl").read_text() == metrics


def test_a_half_written_checkpoint_is_not_resumed(tmp_path, bases):
    config = write_config(tmp_path, "vlm", bases, "grpo", steps=2, save_every=1)
    train_here(config, "vlm")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / ".step-000003.partial").mkdir()
    (checkpoints / "step-000002" / "state.json").unlink()
    train_here(config, "vlm", "--resume", str(tmp_path / "run"))
    assert [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (checkpoints / "step-000002" / "state.json").exists()


def test_a_reward_that_hangs_dies_or_raises_never_kills_the_run(tmp_path, bases):
    """Every row but the yellow one is lost; the run goes on, learns from what is left, and says what was lost."""
    config = write_config(tmp_path, "vlm", bases, "grpo", steps=2)
    values = yaml.safe_load(config.read_text())
    values["data"]["eval"] = None
    shaky = {"name": values["rewards"][0]["name"].replace(":vowels", ":shaky"), "timeout": 0.3, "weight": 0.1}
    values |= {"rewards": [*values["rewards"], shaky], "reward_run": {"unscored_ceiling": 1.0}}
    config.write_text(yaml.safe_dump(values))
    train_here(config, "vlm", "training.prompts_per_step=4", "training.group_size=2")
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(steps) == 2
    for metrics in steps:
        assert metrics["reward/unscored_fraction"] == 0.75
        assert metrics["unscored"] == {
            "shaky: timeout": 2,
            "shaky: worker died with exit code 3": 2,
            "shaky: ValueError: green is hard": 2,
        }


def test_past_the_ceiling_the_run_stops_and_says_why(tmp_path, bases):
    config = write_config(tmp_path, "vlm", bases, "grpo", steps=2)
    (tmp_path / "my_rewards.py").write_text("def vowels(completions):\n    raise ValueError('no vowels today')\n")
    with pytest.raises(RewardError, match=r"ceiling of 50%.*no vowels today"):
        train_here(config, "vlm")
