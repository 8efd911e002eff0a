"""Numbers of answers, for methods that compare the answers of a group with each other and have no truth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmrl.rewards.answers import extract
from mmrl.rewards.registry import reward

NUMBERS = 2**24 - 1  # whole numbers that float32 holds exactly, 0 aside


def answer_number(text: str, *, whole: bool = False) -> int:
    """1 to `NUMBERS`, equal for answers that read alike; 0 for none. Case and spaces do not tell answers apart.

    whole  a text without tag or box is an answer
    """
    answer = " ".join(extract(text, whole=whole).lower().split()).rstrip(".")
    if not answer:
        return 0
    return 1 + int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=8).digest(), "big") % NUMBERS


@reward("unlabelled", isolated=False)
def unlabelled(completions: Sequence[str]) -> list[float]:
    """0 for every output: of runs in which a teacher says all there is to learn, and no truth is looked at."""
    return [0.0] * len(completions)


@reward(
    "answer_number",
    isolated=False,
    method="ttrv",
    paper="TTRV: test-time RL for vision-language models, arXiv 2510.06783",
    formula="[an answer can be read]; column answer: its number",
    confidence="partly",
)
def answered(completions: Sequence[str], *, whole: bool = False) -> list[dict[str, float]]:
    """1 if a tag or box holds an answer; with `columns: [answer]`, its number for shaping `ttrv`. Needs no truth.

    whole  a text without tag or box is an answer, of models that answer without
    """
    numbers = [answer_number(text, whole=whole) for text in completions]
    return [{"score": float(number > 0), "answer": float(number)} for number in numbers]
