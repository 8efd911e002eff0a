"""Checkpoints: other numbers of ranks, the version before, damage, deletion, the best one, and disks."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from mmrl.errors import ConfigError, DataError, StorageError
from mmrl.training import checkpoint, storage, tensor_files
from mmrl.training.config import TrainingConfig
from mmrl.training.optimizer import MasterAdamW
from mmrl.training.resume import finish_going_back, go_back, newest_whole
from mmrl.training.saving import Saving
from tests.chaos import damage
from tests.training.checkpoint_ranks import ENGINES, LORA, optimizer_of, save, steps
from tests.training.tiny import make_policy

LAST = Path("checkpoints") / "step-000002"


def trained(count: int):
    policy = make_policy(**LORA)
    optimizer = optimizer_of(policy)
    steps(policy, optimizer, range(count))
    return policy, optimizer


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run of one process with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints") / "alone"
    for count in (1, 2):
        save(folder, count, *trained(count), Accelerator(cpu=True))
    return folder


@pytest.fixture
def copied(alone, tmp_path) -> Path:
    subprocess.run(["cp", "-r", str(alone), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def two_ranks(alone) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.checkpoint_ranks", str(alone.parent)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return alone.parent


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_go_on_with_one(two_ranks, engine):
    """Sharded files hold pieces of each rank; one process puts them together, and steps as if it had been alone."""
    path = two_ranks / engine / LAST
    shards = sorted(p.name for p in path.glob("trainable*"))
    expected = ["trainable-00001-of-00002.safetensors", "trainable-00002-of-00002.safetensors"]
    assert shards == (expected if engine == "fsdp2" else ["trainable.safetensors"])
    policy = make_policy(**LORA)
    optimizer = optimizer_of(policy)
    checkpoint.load(path, policy, optimizer)
    steps(policy, optimizer, range(2, 3))
    straight, _ = trained(3)
    for name, value in straight.trainable_state().items():
        assert torch.equal(policy.trainable_state()[name], value), name


@pytest.mark.parametrize("engine", ENGINES)
def test_one_process_goes_on_with_two_ranks(two_ranks, engine):
    straight, _ = trained(3)
    again = load_file(two_ranks / engine / "again.safetensors")
    for name, value in straight.trainable_state().items():
        assert torch.equal(again[name], value), name


def test_names_have_no_wrapper_s_prefix_and_nothing_is_pickled(two_ranks):
    files = sorted(p for engine in ENGINES for p in (two_ranks / engine / LAST).rglob("*"))
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    names = set(load_file(two_ranks / "ddp" / LAST / "optimizer.safetensors"))
    assert names and not any(n.startswith("module.") for n in names)
    assert set(load_file(two_ranks / "ddp" / LAST / "trainable.safetensors")) == set(
        make_policy(**LORA).trainable_state()
    )


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_a_checkpoint_of_the_version_before_is_read(copied, wrapped):
    """Whole tensors, moments under the name the wrapper gave, no digests."""
    path = copied / LAST
    moments = load_file(path / "optimizer.safetensors")
    save_file({wrapped + name: value for name, value in moments.items()}, path / "optimizer.safetensors")
    save_file(load_file(path / "trainable.safetensors"), path / "trainable.safetensors")
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k not in ("files", "sha256")}))
    assert newest_whole(copied) == path
    policy = make_policy(**LORA)
    optimizer = optimizer_of(policy)
    checkpoint.load(path, policy, optimizer)
    steps(policy, optimizer, range(2, 3))
    straight, _ = trained(3)
    for name, value in straight.trainable_state().items():
        assert torch.equal(policy.trainable_state()[name], value), name


@pytest.mark.parametrize("name", damage.FILES)
@pytest.mark.parametrize("way", damage.WAYS, ids=lambda way: way.__name__)
def test_a_damaged_newest_one_is_named_and_the_older_used(copied, capsys, name, way):
    way(copied / LAST / name, random.Random(0))
    assert newest_whole(copied) == copied / "checkpoints" / "step-000001"
    if (way, name) != (damage.remove, "state.json"):  # without it, it was never complete
        assert f"{LAST.name}/{Path(name).stem}" in capsys.readouterr().err


def test_where_none_is_whole_every_one_is_named(copied):
    for step in (1, 2):
        damage.cut(copied / "checkpoints" / f"step-{step:06d}" / "optimizer.safetensors", random.Random(step))
    with pytest.raises(DataError, match=r"step-000002/optimizer.*; .*step-000001/optimizer"):
        newest_whole(copied)


def test_a_run_that_took_no_optimizer_step_has_no_moments(tmp_path):
    policy = make_policy(**LORA)
    optimizer = optimizer_of(policy)
    checkpoint.save(tmp_path, 1, policy, optimizer, {}, Accelerator(cpu=True), keep=1)
    path = newest_whole(tmp_path)
    assert path is not None and checkpoint.load(path, policy, optimizer)["step"] == 1


def test_moments_keep_their_own_precision(tmp_path):
    """Those of bfloat16 weights are float32, as their master copies are."""
    policy = make_policy(**LORA)
    policy.module.to(torch.bfloat16)
    trained = [p for p in policy.inner.parameters() if p.requires_grad]
    optimizer = MasterAdamW(trained, lr=1e-3)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    checkpoint.save(tmp_path, 1, policy, optimizer, {}, Accelerator(cpu=True), keep=1)
    again = MasterAdamW(trained, lr=1e-3)
    checkpoint.load(tmp_path / "checkpoints" / "step-000001", policy, again)
    for parameter in trained:
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(again.state[parameter][name], value), name
            assert again.state[parameter][name].dtype == torch.float32


def test_a_digest_cannot_point_out_of_the_checkpoint(copied, tmp_path):
    (tmp_path / "secret").write_text("x")
    state = json.loads((copied / LAST / "state.json").read_text())
    del state["sha256"]
    state["files"]["../../../secret"] = {"bytes": 1, "sha256": "x"}
    (copied / LAST / "state.json").write_text(checkpoint.sealed(state))
    with pytest.raises(DataError, match="outside the checkpoint"):
        checkpoint.check(copied / LAST)


def test_checkpoints_of_others_are_never_deleted(copied):
    foreign = copied / "checkpoints" / "step-000000"
    subprocess.run(["cp", "-r", str(copied / LAST), str(foreign)], check=True)
    policy, optimizer = trained(3)
    checkpoint.save(copied, 3, policy, optimizer, {}, Accelerator(cpu=True), keep=1)
    assert [p.name for _, p in checkpoint.checkpoints(copied)] == ["step-000000", "step-000003"]


def test_the_best_one_is_kept_and_pointed_to(copied):
    policy, optimizer = trained(3)
    for step, best in ((3, True), (4, False), (5, False)):
        checkpoint.save(copied, step, policy, optimizer, {}, Accelerator(cpu=True), keep=1, best=best)
    assert [step for step, _ in checkpoint.checkpoints(copied)] == [3, 5]
    assert checkpoint.best_of(copied) == (copied / "checkpoints" / "step-000003").resolve()
    assert os.readlink(copied / "checkpoints" / "best") == "step-000003"


def test_which_score_is_best():
    saving = Saving(TrainingConfig(keep_best="eval/success"))
    asked = [
        saving.is_best(step, {"eval/success": score}) for step, score in enumerate((0.5, float("nan"), 0.4, 0.6), 1)
    ]
    assert asked == [True, False, False, True]
    again = Saving(TrainingConfig(keep_best="eval/success"))
    again.load_state_dict(saving.state_dict())
    assert not again.is_best(5, {"eval/success": 0.55})
    with pytest.raises(ConfigError, match=r"unknown score 'eval/sucess'; did you mean 'eval/success'"):
        Saving(TrainingConfig(keep_best="eval/sucess")).check_name({"eval/success": 0.5}, evaluated=True)


def test_minutes_and_steps_decide_when_to_save(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    saving = Saving(TrainingConfig(steps=10, save_every=4, save_every_minutes=2.0, export_every=5))
    assert [step for step in range(1, 11) if saving.due(step)] == [4, 5, 8, 10]
    assert [step for step in range(1, 11) if saving.exports(step)] == [5, 10]
    now = 119.0
    assert not saving.minutes_are_over()
    now = 121.0
    assert saving.minutes_are_over()
    saving.begin_interval()
    assert not saving.minutes_are_over()


def test_going_back_is_finished_after_a_kill_at_any_moment(copied):
    """What was written down first is done in the end: nothing of the branch that was left can be resumed."""
    rows = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2))
    (copied / "metrics.jsonl").write_text(rows)
    (copied / checkpoint.GOING_BACK).write_text(json.dumps({"step": 1, "into": 1}))  # and then: kill -9
    assert [step for step, _ in checkpoint.checkpoints(copied)] == [1]
    finish_going_back(copied)
    finish_going_back(copied)
    aside = copied / "set_aside" / "1"
    assert (aside / "checkpoints" / LAST.name / "state.json").exists()
    assert (aside / "metrics.jsonl").read_text() == '{"step": 2}\n'
    assert go_back(copied, 1) is None


def test_a_disk_without_room_is_refused_before_the_first_byte(copied, monkeypatch):
    usage = storage.shutil.disk_usage(copied)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    policy, optimizer = trained(3)
    with pytest.raises(
        StorageError, match=r"step-000003: No space left on device: a checkpoint takes .*, 1 KB are free"
    ):
        save(copied, 3, policy, optimizer, Accelerator(cpu=True))
    assert newest_whole(copied) == copied / LAST
    assert not list(copied.rglob("*.partial"))


def test_large_files_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "PART_BYTES", 100)
    weights = {name: torch.randn(20) for name in "abc"}
    tensor_files.write(tmp_path, weights, {})
    assert len(list(tmp_path.glob("trainable*"))) == 3
    read = {name: torch.empty(20) for name in weights}
    tensor_files.read(tmp_path, tensor_files.WEIGHTS, read)
    assert all(torch.equal(read[n], weights[n]) for n in weights)
