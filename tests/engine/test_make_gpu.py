"""`make gpu DEVICE=cpu SIZE=tiny`: every part for real, on narrow models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_every_part_runs_and_reports(tmp_path):
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    parts = {row["part"]: row for row in json.loads((tmp_path / "tiny-cpu.json").read_text())["parts"]}
    measured = [row for row in parts.values() if "seconds a step" in row]
    assert len(measured) == 7 and all(row["utilization"] > 0 for row in measured)
    assert all(len(row["top kernels"]) == 5 for row in measured if "TRL" not in row["part"])
    assert parts["tests"]["state"] == "done" and "passed" in parts["tests"]["note"]
