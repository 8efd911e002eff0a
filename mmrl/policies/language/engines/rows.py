"""What rows carry of the engine that wrote them: the version of its weights, and the log-probs it gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.writing import WritingPlan
from mmrl.record import Rollouts

SAMPLER = "sampler_log_probs"
VERSION = "version"
Score = Callable[[Rollouts, list[Encoded]], dict[str, Tensor]]


def with_version(rows: Rollouts, version: int) -> Rollouts:
    """`rows` whose replay says how many optimizer steps the weights had behind them that wrote each."""
    rows.replay[VERSION] = torch.full_like(rows.member, version)
    return rows


def with_sampler(rows: Rollouts) -> Rollouts:
    """`rows` with the column of the engine's log-probs, where nobody's differ from `old_log_probs`."""
    rows.columns[SAMPLER] = rows.old_log_probs.clone()
    return rows


@torch.no_grad()
def corrected(
    rows: Rollouts, plan: WritingPlan, shown: Sequence[Encoded], parts: Iterable[Tensor], score: Score,
    media: Sequence[Any] | None = None,
) -> Rollouts:  # fmt: skip
    """`rows` with the trainer's `old_log_probs`, the engine's own in the column `SAMPLER`.

    A row is scored under the prompt that it was written under, and what it took over of another row keeps both.

    shown  the prompt of each request as it was shown, without its prefix
    parts  rows that are scored at once
    score  (rollouts, their encodings) -> {"log_probs": (B, T)}
    media  of each response behind the prompt that it was written under, where rows have some; None: `rows.media`
    """
    with_sampler(rows)
    prompts = [request.shown or request.prompt for request in plan.requests]
    judged = replace(
        rows, prompts=prompts, encoded=list(shown), prompt=plan.context.to(rows.prompt),
        media=rows.media if media is None else list(media),
    )  # fmt: skip
    own = torch.zeros_like(rows.old_log_probs)
    for part in parts:
        piece = judged.index(part)
        own[part.to(own.device)] = score(piece, piece.encoded)["log_probs"].to(own)
    rows.old_log_probs = torch.where(rows.mask, own, 0.0)
    for row, request in enumerate(plan.context.tolist()):
        start = plan.requests[request].start
        if start is not None:
            for mine, theirs in (
                (rows.old_log_probs, start.row.old_log_probs),
                (rows.columns[SAMPLER], start.row.columns[SAMPLER]),
            ):
                mine[row, : start.action] = theirs[0, : start.action].to(mine)
    return rows
