r"""Format: is the answer where it was asked to be?

think_answer   <think>...</think> <answer>...</answer> and nothing else (EasyR1 r1v, Video-R1, VLM-R1, TON)
boxed          <think>...</think> and then a \boxed{...} somewhere (EasyR1 math)
answer         one <answer>...</answer> with something in it, no thought asked for
think          <think>...</think> once, at the beginning, and anything after it (TRL's think_format_reward)
"""

from __future__ import annotations

import re

from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import find_task

_TURN = re.compile(r"</think>\s*<answer>")


def think_answer(text: str) -> bool:
    """`<think>.*?</think>\\s*<answer>.*?</answer>` matches the whole text; written without backtracking."""
    start, end = "<think>", "</answer>"
    return text.startswith(start) and text.endswith(end) and bool(_TURN.search(text, len(start), len(text) - len(end)))


def think_boxed(text: str) -> bool:
    """A thought first, and a balanced box after it is closed."""
    end = text.rfind("</think>")
    return text.startswith("<think>") and end >= 0 and bool(answers.boxed(text[end:]))


def answer_only(text: str) -> bool:
    return bool(answers.tagged(text))


def think(text: str) -> bool:
    r"""`^<think>(?!.*<think>)(.*?)</think>.*$`, over lines."""
    return text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text


ASKED = {"think_answer": ("<think>", "<answer>"), "boxed": ("<think>", "boxed"), "answer": ("<answer>",),
         "think": ("<think>",)}  # fmt: skip
"""What a prompt that asks for the format has in it."""
KINDS = {"think_answer": think_answer, "boxed": think_boxed, "answer": answer_only, "think": think}


@reward("format")
def format(completions, *, kind: str = "think_answer") -> list[float]:
    """1 if the answer is where it was asked to be; `kind` is think_answer, boxed, answer or think."""
    if kind not in KINDS:
        raise RewardError(f"reward 'format': {unknown('kind', kind, KINDS)}")
    return [float(KINDS[kind](answers.normalise(completion))) for completion in completions]


def graded(completion: str, task: str) -> float:
    """1 for an answer tag whose content has the type its task asks for, .5 for a tag, 0 for none (EasyVideoR1)."""
    content = answers.tagged(answers.normalise(completion))
    if content is None:
        return 0.0
    inner = answers.boxed(content)
    return 1.0 if find_task(task).valid(content if inner is None else inner) else 0.5


@reward("format_graded")
def format_graded(completions, task) -> list[float]:
    """1 for an answer tag with content of the type its task asks for, .5 for a tag, 0 for none."""
    return [graded(c, t) for c, t in zip(completions, task, strict=True)]
