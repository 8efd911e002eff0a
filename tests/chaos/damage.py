"""Checkpoints that a disk or a hand damaged: named, and the one before is used; or the run says that none is whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmrl.pipelines.run import train
from tests.chaos.trials import STEPS, Ground, Tally, in_child


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def lengthen(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(7))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def replace(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, lengthen, remove, replace)
FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json")


def newest(ground: Ground, count: int, seed: int = 0) -> Tally:
    """The newest of two checkpoints is damaged; `--resume RUN` names it and comes out as if nothing had happened."""
    tally = Tally("damaged newest checkpoint, then --resume")
    draw = random.Random(seed)
    half = ground.fresh("half", steps=STEPS)
    in_child(lambda: train(half), ground.root / "half" / "log")
    for number in range(count):
        config = ground.fresh(f"damage-{number}")
        shutil.copytree(half.directory, config.directory)
        log = ground.root / f"damage-{number}" / "log"
        path = config.directory / "checkpoints" / f"step-{STEPS:06d}" / FILES[number % len(FILES)]
        way = WAYS[number // len(FILES) % len(WAYS)]
        way(path, draw)
        ended = in_child(partial(train, config, resume=config.directory), log)
        problem = "" if ended.status == 0 else f"ended with {ended.status}: {ended.said[-300:]}"
        missing = way is remove and path.name == "state.json"  # without it, it was never a complete checkpoint
        if not problem and not missing and f"step-{STEPS:06d}" not in ended.said:
            problem = f"not named: {ended.said[-300:]}"
        problem = problem or ground.same_as_straight(config.directory)
        tally.count(problem and f"{way.__name__} {path.name}: {problem}")
        shutil.rmtree(log.parent)
    return tally
