"""A slow judge on one rank does not end the group; a limit that is too short does."""

import subprocess
import sys
from datetime import timedelta

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import make_accelerator

RANK = """
import os, sys, time
rank, patience, port = sys.argv[1:]
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
import torch
from mmrl.training.distributed import gather_objects, make_accelerator
accelerator = make_accelerator(patience=float(patience))
assert accelerator.num_processes == 2
gather_objects("here", accelerator)
if rank == "1":
    time.sleep(6)  # a judge
assert gather_objects(rank, accelerator) == ["0", "1"]
print("together", flush=True)
torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(("patience", "goes_on"), [(90, True), (2, False)])
def test_ranks_wait_as_long_as_they_are_told(patience, goes_on):
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(patience), port],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert (ranks[0].returncode == 0) is goes_on, said[0][1][-800:]
    assert ("together" in said[0][0]) is goes_on
    assert goes_on or "imed out" in said[0][1], said[0][1][-800:]


def test_it_is_longer_than_the_watchdog_and_the_rewards():
    training = TrainingConfig(watchdog_seconds=100)
    assert training.patience() == 400 and training.patience(rewards=50) == 450
    assert TrainingConfig(rank_timeout=7).patience(50) == 7
    rewards = [{"name": "accuracy", "timeout": 100}, {"name": "format"}]
    settings = {"modality": "vlm", "rewards": rewards, "training": {"watchdog_seconds": 10}}
    assert read_config(settings).patience == 40 + (100 + 1000) + (30 + 300)
    assert read_config(settings | {"reward_run": {"budget": 5}}).patience == 40 + 105 + 35
    assert timedelta(seconds=TrainingConfig().patience()) >= timedelta(hours=2)


def test_a_launcher_that_shards_is_not_overruled_in_silence(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="sharding=ddp, and the launcher's configuration asks for FSDP"):
        make_accelerator("ddp")


def test_what_is_sharded_in_code_is_what_the_shipped_configuration_says():
    from pathlib import Path

    import yaml

    from mmrl.training.distributed import _fsdp2

    shipped = yaml.safe_load((Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp2.yaml").read_text())
    plugin, said = _fsdp2(), shipped["fsdp_config"]
    assert plugin.fsdp_version == said["fsdp_version"] == 2
    assert plugin.reshard_after_forward is said["fsdp_reshard_after_forward"]
    assert plugin.state_dict_type.name == said["fsdp_state_dict_type"]
    assert plugin.cpu_ram_efficient_loading is said["fsdp_cpu_ram_efficient_loading"]
