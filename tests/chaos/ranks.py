"""Two ranks of which one fails, is killed, is interrupted or sees other rewards: both end, within a minute.

The ranks are forked by hand, without a launcher that would end the one when the other does.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from mmrl.errors import DataError
from mmrl.pipelines.run import open_prompts, train
from mmrl.record import Scores
from tests.chaos.trials import GROWING, Ending, Ground, Tally, at_file_operation, disk_full, fork, wait_for

WORLD = 2
ENDLESS = 100_000
WITHIN_SECONDS = 60.0


def kinds() -> dict[str, Callable[[Ground, str, random.Random], str]]:
    return {
        "interrupted 50 ms apart": _interrupted,
        "one rank gets SIGTERM": _one_asked,
        "one rank is killed": _killed,
        "a reward gives up on one rank": _reward_gives_up,
        "an error nobody foresaw on one rank": _unforeseen,
        "other reward keys on each rank": _keys,
        "the disk of the first rank is full": _disk,
        "one rank exits in a reward, as if all were well": _exits,
        "a reward gives up on one rank in the first evaluation": _evaluation,
        "a row cannot be read on one rank": _row,
    }


def fail(ground: Ground, count: int, seed: int = 0, names: Sequence[str] = ()) -> list[Tally]:
    """`count` trials, the kinds of these names, or all, in turn."""
    draw, tallies = random.Random(seed), {name: Tally(f"two ranks: {name}") for name in names or kinds()}
    for number in range(count):
        name = list(tallies)[number % len(tallies)]
        tallies[name].count(kinds()[name](ground, f"ranks-{number}", draw))
        shutil.rmtree(ground.root / f"ranks-{number}")
    return list(tallies.values())


class Ranks:
    """Two processes that train together into one run directory."""

    def __init__(
        self, ground: Ground, name: str, score: Any = None, first: Callable[[int], Any] = int, evaluated: bool = False,
        prompts: Callable[[Any], Any] | None = None, **changes: Any,
    ):  # fmt: skip
        self.config = ground.fresh(name, **{"steps": ENDLESS, "save_every": 0, **changes})
        if evaluated:
            self.config.data.eval = self.config.data.train
        self.prompts = prompts
        self.folder = ground.root / name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = [self._start(rank, port, score, first) for rank in range(WORLD)]

    def _start(self, rank: int, port: int, score: Any, first: Callable[[int], Any]) -> int:
        def work() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the trials themselves run under nohup
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            PartialState._reset_state()  # of whatever this process has trained before it was forked
            AcceleratorState._reset_state()
            os.environ |= {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_PORT": str(port)}
            rows = (
                None if self.prompts is None else self.prompts(open_prompts(self.config.data.train, self.config.data))
            )
            train(self.config, score=score, prompts=rows)

        return fork(work, self.log(rank), first=lambda: first(rank))

    def log(self, rank: int) -> Path:
        return self.folder / f"log-{rank}"

    def wait_for_steps(self, count: int) -> None:
        metrics, end = self.config.directory / "metrics.jsonl", time.monotonic() + WITHIN_SECONDS
        while time.monotonic() < end and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
            time.sleep(0.01)

    def end(self) -> list[Ending]:
        return [wait_for(pid, self.log(rank), WITHIN_SECONDS) for rank, pid in enumerate(self.pids)]


def _problem(ends: list[Ending], right: Callable[[Ending], bool], said: str = "") -> str:
    """ "" where every rank ended as it should, and one of them said why."""
    if any(e.status is None for e in ends):
        return f"hangs: {[e.status for e in ends]}"
    if not all(map(right, ends)):
        return f"ended with {[e.status for e in ends]}: {[e.said[-300:] for e in ends]}"
    return "" if any(said in e.said for e in ends) else f"{said!r} not said: {[e.said[-300:] for e in ends]}"


def _saved(ranks: Ranks, ends: list[Ending]) -> str:
    problem = _problem(ends, lambda e: e.status == 0)
    return problem or ("" if any((ranks.config.directory / "checkpoints").glob("step-*")) else "nothing was saved")


def _interrupted(ground: Ground, name: str, draw: random.Random) -> str:
    ranks = Ranks(ground, name)
    ranks.wait_for_steps(2)
    time.sleep(draw.random())
    first = draw.randrange(WORLD)
    os.kill(ranks.pids[first], signal.SIGINT)
    time.sleep(0.05)
    os.kill(ranks.pids[1 - first], signal.SIGINT)
    return _saved(ranks, ranks.end())


def _one_asked(ground: Ground, name: str, draw: random.Random) -> str:
    ranks = Ranks(ground, name)
    ranks.wait_for_steps(1)
    time.sleep(draw.random())
    os.kill(ranks.pids[draw.randrange(WORLD)], draw.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)))
    return _saved(ranks, ranks.end())


def _killed(ground: Ground, name: str, draw: random.Random) -> str:
    ranks = Ranks(ground, name)
    ranks.wait_for_steps(1)
    time.sleep(draw.random())
    dead = draw.randrange(WORLD)
    os.kill(ranks.pids[dead], signal.SIGKILL)
    ends = ranks.end()
    return _problem([ends[1 - dead]], lambda e: e.status == 1)


def _scored(outputs: list, components: Callable[[int, int], dict[str, float]]) -> Scores:
    rank = int(os.environ["RANK"])
    rows = [components(rank, i) for i in range(len(outputs))]
    columns = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]} if rows else {}
    reward = torch.tensor([float(i % 2) for i in range(len(outputs))])
    return Scores(columns, reward, torch.full_like(reward, float("nan")))


def _raised_by_one(error: Exception, ground: Ground, name: str, draw: random.Random) -> Ranks:
    """The second rank's reward raises at a call that is drawn."""
    at = draw.randrange(1, 5)
    calls = 0

    def score(outputs, prompts):
        nonlocal calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == at:
            raise error
        return _scored(outputs, lambda rank, i: {"own": 0.5})

    return Ranks(ground, name, score)


def _reward_gives_up(ground: Ground, name: str, draw: random.Random) -> str:
    from mmrl.errors import RewardError

    run = _raised_by_one(RewardError("every output is unscored today"), ground, name, draw)
    return _problem(run.end(), lambda e: e.status == 2, "unscored today")


def _unforeseen(ground: Ground, name: str, draw: random.Random) -> str:
    run = _raised_by_one(ZeroDivisionError("nobody thought of this"), ground, name, draw)
    return _problem(run.end(), lambda e: e.status in (1, 2), "nobody thought of this")


def _keys(ground: Ground, name: str, draw: random.Random) -> str:
    def score(outputs, prompts):
        return _scored(outputs, lambda rank, i: {"alpha": 0.25} if rank == 0 else {"omega": 0.75, "zeta": 0.5})

    ranks = Ranks(ground, name, score, steps=2)
    if problem := _problem(ranks.end(), lambda e: e.status == 0):
        return problem
    line = (ranks.config.directory / "metrics.jsonl").read_text().splitlines()[0]
    means = [f'"reward/{key}/mean": {value}' for key, value in (("alpha", 0.25), ("omega", 0.75), ("zeta", 0.5))]
    return "" if all(mean in line for mean in means) else f"components were mixed: {line[:300]}"


def _disk(ground: Ground, name: str, draw: random.Random) -> str:
    number = draw.randrange(8, 30)

    def first(rank: int) -> None:
        if rank == 0:
            at_file_operation(number, ground.root / name / "run", disk_full, GROWING)()

    ends = Ranks(ground, name, first=first, save_every=1).end()
    return _problem(ends, lambda e: e.status in (1, 2), "No space left on device")


def _exits(ground: Ground, name: str, draw: random.Random) -> str:
    calls, at = 0, draw.randrange(1, 5)

    def score(outputs, prompts):
        nonlocal calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == at:
            os._exit(0)
        return _scored(outputs, lambda rank, i: {"own": 0.5})

    return _problem(Ranks(ground, name, score).end()[:1], lambda e: e.status == 1)


def _evaluation(ground: Ground, name: str, draw: random.Random) -> str:
    from mmrl.errors import RewardError

    def score(outputs, prompts):
        if os.environ["RANK"] == "1":
            raise RewardError("every output is unscored today")
        return _scored(outputs, lambda rank, i: {"own": 0.5})

    ends = Ranks(ground, name, score, evaluated=True).end()
    return _problem(ends, lambda e: e.status == 2, "unscored today")


class _Damaged(list):
    """Rows of which one rank cannot read any after the first few."""

    def __init__(self, rows: Any, good: int):
        super().__init__(rows)
        self.left = good

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if os.environ["RANK"] == "1" and self.left < 0:
            raise DataError("rows.jsonl, line 3: its disk is gone")
        return super().__getitem__(index)


def _row(ground: Ground, name: str, draw: random.Random) -> str:
    good = draw.randrange(1, 12)
    ends = Ranks(ground, name, prompts=lambda rows: _Damaged(rows, good)).end()
    return _problem(ends, lambda e: e.status in (1, 2), "its disk is gone")
