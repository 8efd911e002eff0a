"""One rank equals two: the same run, launched both ways, gives the same metrics and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "mmrl", "launch", "--config_file", str(ROOT / "configs/accelerate/cpu_two_ranks.yaml")]
TIMING = ("seconds/", "rate/", "memory/", "self_check/")


NAMES = (
    "grpo", "durian", "batch_quantile", "delta", "vppo", "helped", "ahead", "marble",
    "deepsearch", "supo", "m_grpo", "ssb", "refine", "joint", "janus", "sharded",
)  # fmt: skip


def run(command: list[str], out: Path) -> Path:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.training.two_ranks", str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """The same trainings on one rank, and on two gloo ranks started by accelerate."""
    port = str(29600 + os.getpid() % 300)
    folder = tmp_path_factory.mktemp("ranks")
    return run([sys.executable], folder / "one"), run([*LAUNCH, "--main_process_port", port], folder / "two")


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_equals_two(runs, name):
    one, two = (folder / name for folder in runs)
    assert (one / "world.txt").read_text() == "1"
    assert (two / "world.txt").read_text() == "2"
    assert len(metrics(one)) == len(metrics(two)) == 2
    for alone, both in zip(metrics(one), metrics(two), strict=True):
        assert alone.keys() == both.keys()
        for key, value in alone.items():
            if key.startswith("rows/"):  # a rank without work repeats a row, which has no weight
                told, here = both[key], value
                if name == "sharded":  # shards have reasons of their own
                    told, here = {"rows": sum(told.values())}, {"rows": sum(here.values())}
                assert all(told.get(way, 0) >= count for way, count in here.items()), key
            elif isinstance(value, dict):
                assert both[key] == value, key
            if isinstance(value, (int, float)) and not key.startswith(TIMING):
                assert both[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    if name.startswith("refills"):
        assert any(line["rollouts"] % 8 for line in metrics(one)), "an odd number of groups, so one rank had none more"
    if name == "marble":
        solved = [line["marble/least_cosine"] for line in metrics(two) if "marble/least_cosine" in line]
        assert len(solved) == 1 and solved[0] < 0.999, "one step combined, of two rewards that do not agree"
    weights = load_file(two / "weights.safetensors")
    apart = [(value - weights[key]).abs().flatten() for key, value in load_file(one / "weights.safetensors").items()]
    far = torch.cat(apart)[torch.cat(apart) > 1e-4]
    # an optimizer step moves a weight by 1e-3, also one whose gradient is nothing but rounding
    assert len(far) <= 1e-5 * sum(map(len, apart)) and all(far < 5e-4), far
