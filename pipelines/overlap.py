"""Before a run: whether its prompts are among those that its checkpoint was fine-tuned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmrl.data.overlap import Overlap, overlap
from mmrl.errors import DataError
from mmrl.pipelines.config import DataConfig
from mmrl.record import Prompt

EXAMPLES = 3


def shared_with_sft(
    data: DataConfig, prompts: Sequence[Prompt], opened: Callable[[str], Sequence[Prompt]]
) -> list[str]:
    """A line for each supervised set of `data.sft` that shares prompts with the run; DataError where too many are.

    The answers to shared prompts were learned by heart, so their rewards say little: published studies found that
    reinforcement learning on new prompts gains more.
    `opened` reads a set as the run reads its own.
    """
    lines = []
    for spec in data.sft:
        found = overlap(prompts, opened(spec))
        if not found.rows:
            continue
        lines.append(line := _said(spec, found, prompts))
        if found.share > data.sft_overlap:
            raise DataError(
                f"{line}; at most {data.sft_overlap:.0%} may be (data.sft_overlap): take them out of data.train, or "
                "say how many may stay"
            )
    return lines


def _said(spec: str, found: Overlap, prompts: Sequence[Prompt]) -> str:
    names = ", ".join(repr(prompts[row].id) for row in found.rows[:EXAMPLES])
    more = f" and {len(found.rows) - EXAMPLES} more" if len(found.rows) > EXAMPLES else ""
    return (
        f"{len(found.rows)} of {found.of} training prompts ({found.share:.0%}) are in {spec}, which data.sft names as "
        f"learned before: {names}{more}"
    )
