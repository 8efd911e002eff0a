"""Procedural worlds: endless prompts whose answers are known exactly.

    shapes        coloured shapes: count, colour, position, grounding box        vlm
    digits        mosaics of real handwritten digits                             vlm
    stills        half shapes, half digits                                       vlm
    motion        short clips, written as mp4 files                              video
    fine_print    digits that can be read only after a closer look               vlm
    flashes       clips whose events lie between the frames looked at first      video
    compositions  captions with an exactly verifiable picture                    flow
    moves         captions of which object moves where, with the clip            flow
    edits         a picture and one thing to change in it                        flow
    lists         digits to say in another order, text alone                     masked
    retold        a color to tell, and a picture to draw of it                   joint

Every prompt is a pure function of (world, split, difficulty, seed, index): nothing is stored, and the same
numbers give the same prompts on every machine. Which split a scene belongs to is decided by the hash of the
scene itself, so nothing held out can be met in training, whatever seeds are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmrl.data.prompts import Prompts
from mmrl.data.worlds.compositions import Compositions
from mmrl.data.worlds.digits import Digits
from mmrl.data.worlds.edits import Edits
from mmrl.data.worlds.fine_print import FinePrint
from mmrl.data.worlds.flashes import Flashes
from mmrl.data.worlds.lists import Lists
from mmrl.data.worlds.motion import Motion
from mmrl.data.worlds.moves import Moves
from mmrl.data.worlds.questions import World
from mmrl.data.worlds.retold import Retold
from mmrl.data.worlds.scenes import check_level, check_split, keyed_random, picture_hash, split_of
from mmrl.data.worlds.shapes import Shapes
from mmrl.data.worlds.stills import Stills
from mmrl.errors import DataError, unknown
from mmrl.randomness import Key
from mmrl.record import Prompt

WORLDS: dict[str, type[World]] = {
    w.name: w for w in (Shapes, Digits, Stills, FinePrint, Motion, Flashes, Compositions, Moves, Edits, Lists, Retold)
}
DIFFICULTY = 2
MOST_ATTEMPTS = 1000


def open_world(
    name: str,
    *,
    split: str = "train",
    size: int | None = None,
    seed: int = 0,
    difficulty: int | tuple[int, int] = DIFFICULTY,
    skills: Sequence[str] = (),
    root: str | Path | None = None,
) -> WorldDataset:
    """Prompts of a world.

    size        how many; by default 4,096 to train on and 256 held out (`moves`: 160, it has few)
    difficulty  1 to 5, or a (lowest, highest) range drawn from prompt by prompt
    skills      which questions are asked, such as ("count", "color"); default: all the world offers
    root        folder of the files a world writes, if it writes any; default: the user's cache
    """
    if name not in WORLDS:
        raise DataError(unknown("world", name, WORLDS))
    size = WORLDS[name].sizes[check_split(split)] if size is None else size
    if size < 1:
        raise DataError(f"world {name!r}: size {size}: expected at least one prompt")
    lowest, highest = (difficulty, difficulty) if isinstance(difficulty, int) else difficulty
    levels = range(check_level(lowest), check_level(highest) + 1)
    if not levels:
        raise DataError(f"world {name!r}: difficulty {difficulty}: expected (lowest, highest)")
    return WorldDataset(WORLDS[name].open(root, _skills(name, skills)), split, size, seed, levels, tuple(skills))


def _skills(name: str, asked: Sequence[str]) -> tuple[str, ...]:
    offers = WORLDS[name].offers
    for skill in asked:
        if skill not in offers:
            raise DataError(f"world {name!r}: {unknown('skill', skill, offers)}")
    return tuple(asked) or offers


@dataclass(frozen=True)
class WorldDataset(Prompts):
    """`size` prompts of a world, each made when it is asked for."""

    world: World
    split: str
    size: int
    seed: int
    levels: range
    skills: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.size

    def prompt(self, index: int) -> Prompt:
        level, scene = self.scene(index)
        columns = {"world": self.world.name, "split": self.split, "difficulty": level, "scene": scene}
        return self.world.prompt(scene, self._id(index), columns)

    def ids(self) -> list[str]:
        return [self._id(index) for index in range(self.size)]

    def scene(self, index: int) -> tuple[int, dict[str, Any]]:
        """Difficulty and scene of a prompt. A held-out split shows no picture twice."""
        index = self.position(index)
        return self._distinct[index] if self.split == "test" else self._draw(index, ())

    @cached_property
    def _distinct(self) -> list[tuple[int, dict[str, Any]]]:
        scenes: dict[str, tuple[int, dict[str, Any]]] = {}
        asked: Counter[Any] = Counter()
        for index in range(self.size):
            level, scene = self._draw(index, scenes)
            scenes[picture_hash(scene)] = level, self.world.held_out(scene, asked)
        return list(scenes.values())

    def _draw(self, index: int, seen: Container[str]) -> tuple[int, dict[str, Any]]:
        """Drawn again until the scene belongs to this split and is not among those seen."""
        key = Key(self.seed, prompt=self._id(index), purpose="scene")
        for attempt in range(MOST_ATTEMPTS):
            rng = keyed_random(key.at(member=attempt))
            level = rng.choice(self.levels)
            scene = self.world.scene(rng, level, self.split)
            if split_of(scene) == self.split and (not seen or picture_hash(scene) not in seen):
                return level, scene
        raise DataError(
            f"world {self.world.name!r} at difficulty {self.levels[0]} to {self.levels[-1]} has no {self.size} "
            f"different {self.split} scenes: ask for fewer, or for a higher difficulty"
        )

    def _id(self, index: int) -> str:
        levels = f"{self.levels[0]}" if len(self.levels) == 1 else f"{self.levels[0]}-{self.levels[-1]}"
        asked = "".join(f"-{skill}" for skill in self.skills)
        return f"{self.world.name}{asked}-{levels}-{self.split}-{self.seed}-{index}"
