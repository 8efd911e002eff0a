"""ViRL39K: `question` with `<image>`, `answer` in a box, a column `image` that holds a list, pass rates.

Source: TIGER-Lab/ViRL39K, dataset card. A pass rate of -1 means it was not measured. Answers are compared as
mathematics, which texts such as `\\text{No}` pass through.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    return has(raw, "question", "answer") and ("qid" in raw or any(name.startswith("PassRate_") for name in raw))


FORMAT = Format(
    "virl39k",
    "ViRL39K",
    recognise,
    names={"prompt": "question", "solution": "answer"},
    defaults={"task": "math"},
    known_by=("question", "answer", "qid"),
)
