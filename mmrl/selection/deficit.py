"""Choices that keep to their shares: the next one is what has come too seldom so far."""

from __future__ import annotations

from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.tools import tool


@tool(
    "props",
    command="from mmrl.selection.deficit import low_discrepancy_choice",
    paper="PROPS: on-policy data without on-policy sampling, 2023; code NicholasCorrado/PROPS",
    formula="argmax_i p_i (n + 1) - count_i",
    confidence="ours",
)
def low_discrepancy_choice(counts: Tensor, probabilities: Tensor) -> int:
    """The next of a few discrete choices, so that what was drawn looks more like its shares than chance would make it.

    counts (n,) how often each came; probabilities (n,) that sum to 1. Among equals the first. For formats, branch
    counts or buckets of prompts: of PROPS, whose behaviour policy is trained towards what is under-sampled, this is the
    idea alone. Not for tokens, of which no prefix comes twice.
    """
    if (
        counts.shape != probabilities.shape
        or bool((probabilities < 0).any())
        or abs(float(probabilities.sum()) - 1) > 1e-4
    ):
        raise ConfigError(f"props: probabilities {probabilities.tolist()} of {len(counts)} choices; expected as many, "
                          "none negative, of sum 1")  # fmt: skip
    return int((probabilities * (counts.sum() + 1) - counts).argmax())
