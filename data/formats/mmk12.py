"""MMK12: `question`, `answer`, `subject`, one `image`, and no `<image>` in the text.

Source: FanqingM/MMK12 (of MM-Eureka), dataset card; verl-omni reads it the same way.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    return has(raw, "question", "answer", "subject")


FORMAT = Format(
    "mmk12",
    "MMK12",
    recognise,
    names={"prompt": "question", "solution": "answer"},
    defaults={"task": "math"},
    known_by=("question", "answer", "subject"),
)
