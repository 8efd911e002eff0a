"""Which way the rows of a step took, and why not a faster one: nothing slower is taken in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmrl.policies.language.fast import lean, native
from mmrl.policies.language.layout import Way
from mmrl.record import Request

WRITTEN_OUT = "media within the response: rows are written out"
DROPPED = "two_calls: gradient checkpointing drops the cache that the second call goes on from"
NO_FALL = (None, lean.BELOW, native.ELSEWHERE, native.UNASKED)
"""Reasons for which there is no faster way to fall from, or nobody asked for it."""
ALONE = "one prompt at a time: the model takes no padded batches of unlike ones"


class Taken:
    """Rows by the way they were scored and written, since they were last told.

    closed  {way: why this model or configuration has it not}, as `layout.ways` found

    Only passes that a step trains on are counted, those with gradient: a run that was resumed counts the same.
    """

    def __init__(self, closed: Mapping[Way, str]):
        self.closed = {way.value: reason.split(" (")[0].split(";")[0] for way, reason in closed.items()}
        self.scored: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.fell_back: Counter[str] = Counter()

    def score(self, way: Way, best: Way, rows: int, *, written_out: bool, dropped: bool, alone: bool) -> None:
        """Rows that were scored.

        best         way for groups of many rows; with few, plain ones may be faster, which is no fall
        written_out  they have media in the response, and take no way but their own
        dropped      checkpointing drops the cache of a faster way
        alone        one prompt after the other
        """
        if not torch.is_grad_enabled():
            return
        self.scored["written out" if written_out else way.value] += rows
        order = [each.value for each in Way]
        faster = [] if written_out else order[: order.index(best.value)]
        reasons = [f"{other}: {self.closed[other]}" for other in faster if other in self.closed]
        reasons += [text for text, true in ((WRITTEN_OUT, written_out), (DROPPED, dropped), (ALONE, alone)) if true]
        self.fell_back.update(dict.fromkeys(reasons, rows))

    def write(self, module: Any, requests: Sequence[Request]) -> None:
        """Rows that this `ScoredLanguageModel` has written, or for None the engine."""
        if not torch.is_grad_enabled():
            return
        rows = sum(request.count for request in requests)
        self.written["engine" if module is None else module.decodes_by] += rows
        if module is None or not module.shares_prefixes:
            return
        for way, reason in (("lean", module.not_lean), ("native", module.not_native)):
            if reason not in NO_FALL:
                self.fell_back[f"{way}: {reason}"] += rows

    def told(self) -> dict[str, Any]:
        """For a step's metrics; counting begins anew."""
        counts = {"rows/scored": self.scored, "rows/written": self.written, "rows/fell_back": self.fell_back}
        told = {name: dict(sorted(count.items())) for name, count in counts.items()}
        for count in counts.values():
            count.clear()
        return told
