"""EasyR1 and geo3k: `problem` with `<image>`, `images` as bytes or paths, `answer` in LaTeX.

Source: hiyouga/EasyR1, verl/utils/dataset.py. Its rewards compare answers as mathematics, and so does the task here.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    return has(raw, "problem", "answer") and not has(raw, "prompt")


FORMAT = Format(
    "easyr1",
    "EasyR1, geo3k",
    recognise,
    names={"prompt": "problem", "solution": "answer"},
    defaults={"task": "math"},
    known_by=("problem", "answer"),
)
