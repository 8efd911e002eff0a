"""Which characters of a response each of its tokens wrote: what rewards say of spans, said of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.record import Rollouts

UNFINISHED = "\ufffd"
"""What decoding shows of bytes that are not a character yet."""


def action_labels(tokenizer: Any, rollouts: Rollouts) -> list[list[str]]:
    """The token at each place, as text; empty past a response's end."""
    rows = zip(rollouts.actions.tolist(), extents(rollouts), strict=True)
    return [[tokenizer.decode([token]) if t < extent else "" for t, token in enumerate(ids)] for ids, extent in rows]


def extents(rollouts: Rollouts) -> list[int]:
    assert rollouts.extent is not None
    return rollouts.extent.tolist()


def scored_extents(rollouts: Rollouts) -> Tensor:
    """(B,) columns of each row, on the CPU. An action past them would be scored after tokens that nobody sees."""
    assert rollouts.extent is not None
    extent, mask = rollouts.extent.cpu(), rollouts.mask.cpu()
    past = mask & (torch.arange(mask.shape[1]) >= extent[:, None])
    if past.any():
        row, column = past.nonzero()[0].tolist()
        raise PolicyError(
            f"rollouts: row {row} has an action in column {column}, but its extent is {int(extent[row])}; "
            "rows that are given other actions need their extent too"
        )
    return extent


def row_spans(tokenizer: Any, rollouts: Rollouts, row: int) -> list[tuple[int, int]]:
    """[start, end) in a row's output of each of its tokens. Where an environment spoke, the output is the last run:
    what stands before it is empty."""
    ids, first = rollouts.actions[row, : extents(rollouts)[row]].tolist(), 0
    if "turn" in rollouts.columns and int(rollouts.columns["turn"][row].max()) > 0:
        turn = rollouts.columns["turn"][row]
        first = int((turn == turn.max()).nonzero()[0])
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    return [(0, 0)] * first + character_spans(decode, ids[first:], rollouts.outputs[row])


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
