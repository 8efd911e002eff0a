"""Whether a picture shows the text it should, read by rapidocr, whose weights come with it.

The text is the column `target`, or what stands between the first two double quotes of the prompt, as Flow-GRPO has it:
1 - edit distance / length of the target, case and white space left out, at least 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.distances import edits
from mmrl.rewards.packages import loaded, needed, pictures_only
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text

_QUOTED = re.compile(
    r'["\N{LEFT DOUBLE QUOTATION MARK}]([^"\N{RIGHT DOUBLE QUOTATION MARK}]+)["\N{RIGHT DOUBLE QUOTATION MARK}]'
)


@lru_cache(maxsize=1)
def reader() -> Any:
    """The OCR of rapidocr on the processor, its log off."""
    package = needed("rapidocr", "rendered_text", "'mmrl[ocr]'")
    return loaded(lambda: package.RapidOCR(params={"Global.log_level": "critical"}), "rendered_text", "rapidocr")


def text_in(image: Any) -> str:
    """All text of a picture, from top to bottom."""
    import numpy as np

    found = reader()(np.asarray(image.convert("RGB"))[:, :, ::-1])
    return " ".join(getattr(found, "txts", None) or ())


def squeezed(text: str) -> str:
    return "".join(text.casefold().split())


def likeness(read: str, target: str) -> float:
    """1 - edits / length of the target, at least 0; 1 for a text that holds the target (Flow-GRPO)."""
    said, wanted = squeezed(read), squeezed(target)
    if not said or not wanted:
        return 0.0
    return 1.0 if wanted in said else max(0.0, 1 - min(edits(said, wanted), len(wanted)) / len(wanted))


def target_of(prompt: Any, target: Any) -> str:
    """The text asked for; RewardError where none is."""
    if isinstance(target, str) and squeezed(target):
        return target
    match = _QUOTED.search(asked_text(prompt))
    if not match:
        raise RewardError("rendered_text: no column `target`, and no text in double quotes in the prompt", "target")
    return match[1]


def check_target(row: Mapping[str, Any], **_: Any) -> None:
    """RewardError for a row whose `target` is blank; whether a prompt quotes one is seen when it is scored."""
    if "target" in row and not (isinstance(row["target"], str) and squeezed(row["target"])):
        raise RewardError(f"target is {row['target']!r}; expected the text to be shown", "target")


@reward("rendered_text", isolated=False, check=check_target)
def rendered_text(prompts, completions, target=None) -> list[float]:
    """How much a picture shows of the text it should, by OCR: the column `target`, or the prompt's first quotation."""
    pictures_only(completions, "rendered_text")
    reader()
    wanted = [target_of(p, t) for p, t in zip(prompts, target or [None] * len(completions), strict=True)]
    return [likeness(text_in(image), each) for image, each in zip(completions, wanted, strict=True)]
