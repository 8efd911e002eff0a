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
def once(): return torch.empty(2**24).fill_(1.0)[-1].item()
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str) -> int:
    """Pages mapped while a tensor of 64 MiB is made and freed four times, after a first time."""
    made = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True, env=made)
    return int(run.stdout)


@glibc
def test_the_next_tensor_gets_the_pages_of_the_last():
    assert faults("keep") < 100 < 4 * 2**26 // 2**16 < faults("leave")


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_environment_has_the_last_word(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert not heap.keep_freed()


def test_other_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep_freed()
