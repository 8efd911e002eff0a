"""Which characters of a response each of its tokens wrote: what rewards say of spans, said of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmrl.errors import PolicyError
from mmrl.record import Rollouts

UNFINISHED = "\ufffd"
"""What decoding shows of bytes that are not a character yet."""


def action_labels(tokenizer: Any, rollouts: Rollouts) -> list[list[str]]:
    """The token at each place, as text; empty past a response's end."""
    rows = zip(rollouts.actions.tolist(), rollouts.length.tolist(), strict=True)
    return [[tokenizer.decode([token]) if t < length else "" for t, token in enumerate(ids)] for ids, length in rows]


def row_spans(tokenizer: Any, rollouts: Rollouts, row: int) -> list[tuple[int, int]]:
    """[start, end) in a row's output of each of its tokens."""
    ids = rollouts.actions[row, : int(rollouts.length[row])].tolist()
    return character_spans(partial(tokenizer.decode, skip_special_tokens=True), ids, rollouts.outputs[row])


def character_spans(decode: Callable[[Sequence[int]], str], ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """[start, end) in `text = decode(ids)` of each token; tokens that write one character together share it.

    Tokens are decoded with the few before them, on which their spaces depend. What `decode` leaves out, such as an end
    token, is empty. Raises PolicyError where the pieces do not make up the text.
    """
    spans: list[tuple[int, int]] = []
    begin = done = place = 0
    for t in range(len(ids)):
        before, now = decode(ids[begin:done]), decode(ids[begin : t + 1])
        if now.endswith(UNFINISHED) and t + 1 < len(ids):
            continue
        end = place + len(now) - len(before)
        spans += [(place, end)] * (t + 1 - done)
        begin, done, place = done, t + 1, end
    if place != len(text):
        raise PolicyError(f"{len(ids)} tokens decode to {place} characters one by one, and to {len(text)} together")
    return spans
