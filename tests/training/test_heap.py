"""What a process that trains on the CPU frees stays with it or leaves it, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from mmrl.training import heap
from mmrl.training.heap import Heap

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
STEPS = """
import sys, resource, torch
from mmrl.training.heap import Heap, settle
for name in sys.argv[1:]: assert settle(Heap[name])
def step():
    x = torch.ones(2**23)
    for _ in range(4): x = torch.relu(x * x) + x
def held(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
start = held()
for _ in range(4): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, held() - start)
"""


def faults_and_rest(*ways: str) -> tuple[int, int]:
    """Pages mapped while tensors of 32 MiB are made from one another for the fifth time, and MiB held afterwards."""
    made = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", STEPS, *ways], capture_output=True, text=True, check=True, env=made)
    faults, rest = run.stdout.split()
    return int(faults), int(rest)


@glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_freed_memory_is_kept_for_the_next_tensor_or_given_back():
    faults, held = faults_and_rest("FAST")
    assert faults < 100 and held > 64
    faults, held = faults_and_rest("FAST", "SMALL")  # the later one counts
    assert faults > 1000 and held < 32


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_environment_has_the_last_word(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert not heap.settle(Heap.FAST)


def test_other_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    assert not heap.settle(Heap.SMALL)
