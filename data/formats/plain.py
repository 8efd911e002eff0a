"""Our own rows: `prompt`, `image` or `images`, `video` or `videos`, `solution`, `task`, `options`, anything else."""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw

PROMPTS = Format("prompts", "a prompt a line", lambda raw: False)
"""The rows of a `.txt` file; no row shows that it is one, its file does."""


def recognise(raw: Raw) -> bool:
    return True


FORMAT = Format("mmrl", "rows with a prompt", recognise)
