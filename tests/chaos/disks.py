"""Disks that fill at any operation, or in the middle of a file: one line, and the last good state still stands."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterable
from functools import partial

from mmrl.pipelines.run import train
from tests.chaos.trials import GROWING, Ground, Tally, at_file_operation, disk_full, in_child


def full(ground: Ground, numbers: Iterable[int]) -> Tally:
    """No room from the n-th operation on."""
    tally = Tally("disk full from a file operation on, then --resume or the same command")
    for number in numbers:
        config = ground.fresh(f"full-{number}")
        first = at_file_operation(number, config.directory, disk_full, GROWING)
        if (problem := _trial(ground, config, f"full-{number}", first)) is None:
            break
        tally.count(problem)
    return tally


def cut(ground: Ground, sizes: Iterable[int]) -> Tally:
    """No file may grow past a size: writes fail in their middle."""
    tally = Tally("file cut in the middle of a write, then --resume or the same command")
    for size in sizes:
        config = ground.fresh(f"cut-{size}")
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        problem = _trial(ground, config, f"cut-{size}", limit)
        tally.count(problem or "")
    return tally


def _trial(ground: Ground, config, name: str, first) -> str | None:
    """None where the run did not notice."""
    log = ground.root / name / "log"
    ended = in_child(lambda: train(config), log, first=first)
    if ended.status == 0:
        shutil.rmtree(log.parent)
        return None
    if not ended.in_one_line:
        return f"{name}: ended with {ended.status}: {ended.said[-400:]}"
    resumed = any((config.directory / "checkpoints").glob("step-*"))
    again = in_child(lambda: train(config, resume=config.directory if resumed else None), log)
    if again.status != 0:
        return f"{name}: went on with {again.status}: {again.said[-400:]}"
    problem = ground.same_as_straight(config.directory)
    shutil.rmtree(log.parent)
    return problem and f"{name}: {problem}"
