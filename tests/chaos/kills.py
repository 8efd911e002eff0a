"""kill -9 before every change to a file, in a run from its start and in one that goes back to an earlier checkpoint."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from mmrl.pipelines.run import train
from tests.chaos.trials import Ground, Tally, at_file_operation, in_child, kill


def fresh(ground: Ground, numbers: Iterable[int]) -> Tally:
    """Killed, then started or resumed until it is done: equal to never having been killed."""
    tally = Tally("kill -9 at a file operation, fresh run, then the same command or --resume")
    for number in numbers:
        config = ground.fresh(f"kill-{number}")
        log = ground.root / f"kill-{number}" / "log"
        ended = in_child(partial(train, config), log, first=at_file_operation(number, config.directory, kill))
        if ended.status == 0:
            break  # a run has no more operations than that
        tally.count(_gone_on(ground, config, ended.status, log))
        shutil.rmtree(log.parent)
    return tally


def _gone_on(ground: Ground, config, status: int | None, log: Path) -> str:
    if status != -signal.SIGKILL:
        return f"ended with {status}: {log.read_text()[-300:]}"
    resumed = any((config.directory / "checkpoints").glob("step-*"))
    ended = in_child(lambda: train(config, resume=config.directory if resumed else None), log)
    if ended.status != 0:
        return f"{'--resume' if resumed else 'start'} ended with {ended.status}: {ended.said[-300:]}"
    return ground.same_as_straight(config.directory)


def going_back(ground: Ground, numbers: Iterable[int]) -> Tally:
    """`--resume` of an earlier checkpoint, killed, then `--resume RUN`: never the branch left, no line lost."""
    tally = Tally("kill -9 at a file operation, resuming a named earlier checkpoint, then --resume")
    done = ground.fresh("back", keep_checkpoints=9)
    in_child(lambda: train(done), ground.root / "back" / "log")
    for number in numbers:
        config = ground.fresh(f"back-{number}", keep_checkpoints=9)
        shutil.copytree(done.directory, config.directory)
        log = ground.root / f"back-{number}" / "log"
        earlier = config.directory / "checkpoints" / "step-000001"
        ended = in_child(
            partial(train, config, resume=earlier), log, first=at_file_operation(number, config.directory, kill)
        )
        if ended.status == 0:
            break
        in_child(partial(train, config, resume=config.directory), log)
        problem = ground.same_as_straight(config.directory)
        aside = config.directory / "set_aside" / "1" / "checkpoints"
        if not problem and (config.directory / "set_aside").exists():
            names = sorted(p.name for p in aside.glob("step-*"))
            problem = "" if names == ["step-000002", "step-000003"] else f"set aside: {names}"
        tally.count(problem and f"operation {number}: {problem}: {log.read_text()[-300:]}")
        shutil.rmtree(log.parent)
    return tally
