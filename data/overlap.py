"""Which prompts two data sets share: by their words, whatever case and spaces, and by what is in their media."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.data.images import media_identity
from mmrl.media import Clip, FrameList
from mmrl.record import Prompt


@dataclass
class Overlap:
    """rows    of the first set whose prompt is in the second, too
    of      rows of the first set
    """

    of: int
    rows: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        return len(self.rows) / self.of if self.of else 0.0


def words(prompt: Prompt) -> str:
    """What a prompt says, with a mark where media stand; case and spaces do not tell prompts apart."""
    said = prompt.marked.lower()
    for mark in ("<image>", "<video>"):
        said = said.replace(mark, f" {mark} ")
    return " ".join(said.split())


def media(prompt: Prompt) -> str:
    """A digest of what a prompt shows: the pixels of images, the bytes of files."""
    shown = [_content(value) for value in (*prompt.images, *prompt.videos)]
    return hashlib.sha256("|".join(shown).encode()).hexdigest()


def _content(value: Any) -> str:
    if isinstance(value, FrameList):
        return ",".join(map(_content, value.paths)) + f" {value.fps}"
    if isinstance(value, Clip):
        return f"{_content(value.path)} {value.start} {value.end}"
    if isinstance(value, str | Path) and Path(value).is_file():
        with Path(value).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return media_identity(value)


def overlap(first: Sequence[Prompt], second: Iterable[Prompt]) -> Overlap:
    """Rows of `first` whose words and media are those of a prompt of `second`. Media are read where words are equal."""
    said: dict[str, list[int]] = defaultdict(list)
    for row in range(len(first)):
        said[words(first[row])].append(row)
    shows: dict[int, str] = {}
    found: set[int] = set()
    for prompt in second:
        rows = [row for row in said.get(words(prompt), ()) if row not in found]
        if not rows:
            continue
        other = media(prompt)
        for row in rows:
            if row not in shows:
                shows[row] = media(first[row])
            if shows[row] == other:
                found.add(row)
    return Overlap(len(first), sorted(found))
