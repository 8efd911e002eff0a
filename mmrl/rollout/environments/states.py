"""Numbers of turns, and of what they act in: equal where the policy was last shown the same.

An anchor state is what the environment shows, as in GiGPO's released code, which compares raw observations. A
conversation begins in state 0, its prompt; later states are numbers of the observation before them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.columns import Column
from mmrl.rollout.environments.base import NUMBERS, Observation


def number(*parts: bytes) -> int:
    """1 to `NUMBERS`, equal for equal parts in every process.

    >>> number(b"a", b"b") == number(b"a", b"b") != number(b"ab")
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return 1 + int.from_bytes(digest.digest(), "big") % NUMBERS


def number_of(text: str) -> int:
    """Of words: case and spaces do not tell texts apart; 0 for none."""
    folded = " ".join(text.lower().split())
    return number(folded.encode()) if folded else 0


def state_of(shown: Observation) -> int:
    """Of an observation: its messages, its pictures by their pixels, its clips by what they name."""
    words = json.dumps([dict(m) for m in shown.messages], sort_keys=True, default=repr).encode()
    return number(words, *map(_seen, (*shown.images, *shown.videos)))


def _seen(media: Any) -> bytes:
    if hasattr(media, "tobytes") and hasattr(media, "size"):
        return repr((media.size, getattr(media, "mode", ""))).encode() + media.tobytes()
    return repr(media).encode()


def turn_column(column: Column, said: Sequence[Sequence[Mapping[str, float]]], mask: Tensor, turn: Tensor) -> Tensor:
    """(B, T) what was said of the turns of each row under the name of `column`: on every action of the turn, of a
    column that adds up on the last. Turns nobody spoke of, and what the policy did not write, have the column's fill.

    said  for each row, the numbers of its turns, by name
    turn  (B, T) the turn of each action of `mask (B, T)`
    """
    made = torch.full(mask.shape, float(column.fill), device=mask.device)
    for row, turns in enumerate(said):
        for place, numbers in enumerate(turns):
            if column.name in numbers:
                inside = (mask[row] & (turn[row] == place)).nonzero().squeeze(1)
                made[row, inside[-1:] if column.added else inside] = float(numbers[column.name])
    return made.long() if column.fill < 0 else made
