"""What a row of several stretches says and shows: texts and pictures in their order, as rewards read it.

Nothing here imports torch: a reward's worker knows it too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = re.compile(r"(text|picture)(?:_([1-9]\d*))?")


@dataclass
class Told:
    """stretches  a text for each stretch of words, a picture (a PIL image) for each stretch of denoising steps

    `text` and `picture` are the last of each; `part("text_1")` is the first text.
    """

    stretches: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.stretches)

    @property
    def text(self) -> str:
        return self.part("text")

    @property
    def picture(self) -> Any:
        return self.part("picture")

    @property
    def texts(self) -> list[str]:
        return [each for each in self.stretches if isinstance(each, str)]

    @property
    def pictures(self) -> list[Any]:
        return [each for each in self.stretches if not isinstance(each, str)]

    def part(self, name: str) -> Any:
        return self.stretches[self.place(name)]

    def place(self, name: str) -> int:
        """Which stretch `text`, `picture` (the last of each), `text_1`, `picture_2` is. Raises KeyError for others."""
        kinds = ["text" if isinstance(each, str) else "picture" for each in self.stretches]
        return place_of(name, kinds)

    def save(self, path: str | Path) -> None:
        """The last picture."""
        self.picture.save(path)


def place_of(name: str, kinds: list[str]) -> int:
    """Which of the stretches `kinds`, "text" or "picture" each, goes by this name; KeyError names those there are."""
    found = NAME.fullmatch(name)
    places = [place for place, kind in enumerate(kinds) if found and kind == found[1]]
    number = len(places) if found is None or found[2] is None else int(found[2])
    if not 0 < number <= len(places):
        raise KeyError(f"{name!r}; there are {', '.join(names_of(kinds)) or 'none'}")
    return places[number - 1]


def names_of(kinds: list[str]) -> list[str]:
    """Every name of the stretches: `text` and `picture`, and with a number where there are several."""
    names = []
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        names += [kind, *(f"{kind}_{n}" for n in range(1, count + 1) if count > 1)]
    return names
