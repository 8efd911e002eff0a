"""Rows of self-made exercises from texts that are right already: fill masks, order steps, choose the hidden step.

Rewards `masked_fill` and `step_order` (MR-RLVR, arXiv 2511.17473) and `golden_goose` (Golden Goose, 2026) score them.
How steps and options are shuffled is keyed, so a data set is the same whenever it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.errors import DataError
from mmrl.randomness import Key

MASK = "[MASK]"
LETTERS = "ABCDEFGHIJ"


def masked_row(
    text: str, spans: Sequence[str], instruction: str = "Fill each [MASK]; answer with a JSON list."
) -> dict:
    """A text whose `spans`, in order of appearance, are hidden. Raises DataError for one that is not there."""
    shown, start = "", 0
    for span in spans:
        place = text.find(span, start) if span else -1
        if place < 0:
            raise DataError(f"span {span!r} does not follow in the text {text[start : start + 60]!r} ...")
        shown, start = shown + text[start:place] + MASK, place + len(span)
    return {"prompt": f"{instruction}\n\n{shown + text[start:]}", "solution": list(spans), "task": "masked_fill"}


def shuffled_row(
    steps: Sequence[str], key: Key, instruction: str = "Put the steps in order; answer with a JSON list of numbers."
) -> dict:
    """Steps in a keyed order, numbered as shown; the solution lists the numbers in the true order."""
    if len(steps) < 2:
        raise DataError(f"{len(steps)} step(s) have no order")
    order = torch.randperm(len(steps), generator=key.at(purpose="shuffled steps").generator()).tolist()
    shown = "\n".join(f"{place + 1}. {steps[step]}" for place, step in enumerate(order))
    return {
        "prompt": f"{instruction}\n\n{shown}",
        "solution": [order.index(step) + 1 for step in range(len(steps))],
        "task": "step_order",
    }


def hidden_step_row(
    text: str, step: str, distractors: Sequence[str], key: Key,
    instruction: str = "Which step is hidden behind [MASK]? Answer with its letter.",
) -> dict[str, Any]:  # fmt: skip
    """A key step hidden among keyed options: Golden Goose's multiple choice. Its reward is `golden_goose`."""
    if step not in text or not 1 <= len(distractors) < len(LETTERS) or step in distractors:
        raise DataError(f"step {step!r}: expected it in the text, and 1 to {len(LETTERS) - 1} other options")
    options = [step, *distractors]
    order = torch.randperm(len(options), generator=key.at(purpose="hidden step").generator()).tolist()
    shown = "\n".join(f"{LETTERS[place]}. {options[i]}" for place, i in enumerate(order))
    return {
        "prompt": f"{instruction}\n\n{text.replace(step, MASK, 1)}\n\n{shown}",
        "solution": LETTERS[order.index(0)],
        "options": [options[i] for i in order],
        "task": "golden_goose",
    }


def worth_asking(blind_accuracy: Sequence[float], most: float = 0.5) -> list[int]:
    """Indices of questions that are not answered without their context more often than `most`."""
    return [i for i, accuracy in enumerate(blind_accuracy) if accuracy <= most]
