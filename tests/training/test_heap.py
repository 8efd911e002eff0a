"""What a process that trains on the CPU frees stays with it, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from mmrl.training import heap

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
FAULTS = """
import sys, resource, torch
from mmrl.training.heap import keep_freed
if sys.argv[1] == "keep": assert keep_freed()
def once():
    x = torch.ones(2**23)
    for _ in range(4): x = torch.relu(x * x) + x
for _ in range(4): once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str) -> int:
    """Pages mapped while tensors of 32 MiB are made from one another, the fifth time."""
    made = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True, env=made)
    return int(run.stdout)


@glibc
def test_the_next_tensor_gets_the_pages_of_those_before():
    assert 10 * faults("keep") < faults("leave") > 1000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_environment_has_the_last_word(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert not heap.keep_freed()


def test_other_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep_freed()
