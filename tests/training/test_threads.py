"""Threads by load: what others leave of the cores."""

import multiprocessing
import time

import pytest
import torch

from mmrl.training import threads
from mmrl.training.threads import ByLoad, left_over, worked


@pytest.mark.parametrize(
    ("cores", "others", "most", "wanted"),
    [(2, 0.0, 2, 2), (2, 0.4, 2, 2), (2, 0.6, 2, 1), (2, 1.9, 2, 1), (2, 2.2, 2, 1), (16, 3.0, 4, 4), (16, 14.0, 4, 2)],
)
def test_whole_cores_that_are_left(cores, others, most, wanted):
    assert left_over(cores, others, most) == wanted


def test_work_is_all_but_idling_and_waiting(monkeypatch):
    monkeypatch.setattr(threads.os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    assert worked("cpu  100 20 30 9000 800 4 5 6 7 8\ncpu0 1 1 1 1 1 1 1 1 1 1\n") == pytest.approx(1.65)


def _hog(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_a_busy_machine_gets_one_thread_and_an_idle_one_its_own_again(monkeypatch):
    """Real processes on all cores; then the same numbers as if they had gone."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monitor = ByLoad()
        hogs = [multiprocessing.get_context("spawn").Process(target=_hog, args=(0.4,)) for _ in range(monitor.cores)]
        monitor.begin(0)
        for hog in hogs:
            hog.start()
        for hog in hogs:
            hog.join()
        monkeypatch.setattr(monitor, "cores", 2)
        assert monitor.watch(1, {}) == {"threads": 2.0} and torch.get_num_threads() == 1
        monkeypatch.setattr(monitor, "_now", lambda: (monitor._before[0] + 10.0, monitor._before[1]))
        assert monitor.watch(2, {}) == {"threads": 1.0} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
