"""`make gpu DEVICE=cpu SIZE=tiny`: every part for real, on narrow models."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="`make test-engine` runs every part of `make gpu`; here none was run")
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_every_part_runs_and_reports(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    parts = {row["part"]: row for row in json.loads((tmp_path / "tiny-cpu.json").read_text())["parts"]}
    measured = [row for row in parts.values() if "seconds a step" in row]
    left_out = [name for name, row in parts.items() if row["state"] == "left out"]
    assert all("is not installed" in parts[name]["note"] for name in left_out)
    assert len(measured) == 6 + (find_spec("trl") is not None) and all(row["utilization"] > 0 for row in measured)
    assert all(len(row["top kernels"]) == 5 for row in measured if "TRL" not in row["part"])
    assert parts["engine"]["note"].startswith("3 checks, worst gap ")
    assert parts["tests"]["state"] == "done" and "passed" in parts["tests"]["note"]
