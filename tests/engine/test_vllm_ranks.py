"""A vLLM in each of two processes that train together: the run is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl.training.tracking import read_metrics

ROOT = Path(__file__).parents[2]
LAUNCH = ["-m", "mmrl", "launch", "--config_file", str(ROOT / "configs/accelerate/cpu_two_ranks.yaml")]


def run(checkpoint: str, out: Path, *launch: str) -> Path:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launch, "-m", "tests.engine.two_ranks", checkpoint, str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.timeout(600)
def test_two_processes_are_one(checkpoint, tmp_path):
    """Rows depend on their seeds alone, whichever process asks for them; written in their step, or one ahead."""
    one = run(checkpoint(), tmp_path / "one")
    two = run(checkpoint(), tmp_path / "two", *LAUNCH, "--main_process_port", str(29600 + os.getpid() % 300))
    for name in ("now", "ahead"):
        alone, both = (read_metrics(folder / name / "metrics.jsonl") for folder in (one, two))
        assert len(alone) == len(both) == 4
        for before, after in zip(alone, both, strict=True):
            for number in ("reward/mean", "length/mean", "rollouts", "gradient_norm"):
                assert after[number] == pytest.approx(before[number], rel=1e-4), (name, number)
            assert after.get("engine/gap_max", 0.0) < 1e-4
    assert [m["ahead/staleness_max"] for m in both] == [0, 1, 1, 1]
