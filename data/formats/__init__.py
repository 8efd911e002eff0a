"""Data formats: which one a row has, by name or by looking.

    formats = Recogniser("auto", first_rows)
    formats.of(row).read(row)       # the row under our column names

One file a format; FORMATS lists them, the more telling before the more general.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from mmrl.data.formats import (
    easyr1,
    easyvideor1,
    flow_edit,
    flow_factory,
    geneval,
    llava,
    mm_eureka,
    mmk12,
    openai,
    plain,
    preference,
    sharegpt,
    swift,
    tinyllava_video,
    trl,
    unirl,
    verl,
    verl_omni,
    video_r1,
    virl39k,
)  # fmt: skip
from mmrl.data.formats.base import Format, Raw
from mmrl.errors import ConfigError, unknown

AUTO = "auto"
MODULES: tuple[ModuleType, ...] = (
    unirl, verl_omni, verl, mm_eureka, video_r1, easyvideor1, tinyllava_video, llava, swift, openai, sharegpt, virl39k,
    mmk12, easyr1, flow_edit, geneval, flow_factory, preference, trl, plain,
)  # fmt: skip
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in MODULES} | {"prompts": plain.PROMPTS}


def find_format(name: str) -> Format:
    """The format of a name. Raises ConfigError."""
    if name not in FORMATS:
        raise ConfigError(unknown("data.format", name, [*FORMATS, AUTO]))
    return FORMATS[name]


def recognise(raw: Raw) -> Format:
    """The format a row shows by itself: by what it holds, or, without a prompt under any name, by its columns."""
    shown = next(f for f in FORMATS.values() if f.recognise(raw))
    if shown is not plain.FORMAT or raw.get("prompt") is not None:
        return shown
    return next((f for f in FORMATS.values() if f.known_by and raw.keys() >= set(f.known_by)), shown)


class Recogniser:
    """The format of each row of a data set.

    name    of the one that all rows have, or "auto"
    sample  rows of the data set: where one shows a format, others that show none may be read like it
    """

    def __init__(self, name: str = AUTO, sample: Iterable[Raw] = ()):
        self._named = None if name == AUTO else find_format(name)
        shown = dict.fromkeys(recognise(raw).name for raw in sample) if self._named is None else {}
        self._admitting = [FORMATS[name] for name in shown if FORMATS[name].admits is not None]

    def of(self, raw: Raw) -> Format:
        if self._named is not None:
            return self._named
        shown = recognise(raw)
        if shown is not plain.FORMAT:
            return shown
        return next((f for f in self._admitting if f.admits and f.admits(raw)), shown)
