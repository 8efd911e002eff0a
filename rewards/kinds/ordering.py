"""Things put in order: events of a video, and the pieces of a jigsaw.

By `pairs` a random order is worth a half, by `position` 1/n and by `exact` 1/n!: the first teaches soonest, the last is
what is measured.
"""

from __future__ import annotations

from mmrl.rewards.sequences import displacement, is_permutation, order, pair_share, true_order
from mmrl.rewards.tasks import Verdict, kind, one_of

RULES = ("position", "pairs", "exact")


@kind(
    "temporal_order",
    read=true_order,
    valid=lambda text: len(order(text)) > 1,
    answer="every item once: `C, A, B`, `C -> A -> B`, `[3, 1, 2]`, `312`; anything else is no order",
    truth="the same, or a list",
    aliases=("ordering", "event_order", "temporal_ordering", "sorting", "event_sequence"),
)
def temporal_order(answer: str, right: list[str], *, by: str = "position") -> Verdict:
    """Events in order, by `position` (share at their place), `pairs` (share in the right order) or `exact`."""
    one_of("by", by, RULES)
    found = order(answer)
    if not is_permutation(found, right):
        return Verdict(0.0, len(found) > 1, dict.fromkeys(RULES, 0.0))
    parts = {
        "position": sum(a == b for a, b in zip(found, right, strict=True)) / len(right),
        "pairs": pair_share(found, right),
        "exact": float(found == right),
    }
    return Verdict(parts[by], True, parts)


@kind(
    "jigsaw",
    read=true_order,
    valid=lambda text: len(order(text)) > 1,
    answer="the places of the pieces, each once: `213456`, `2, 1, 3, 4, 5, 6`",
    truth="the same, or a list",
    aliases=("video_jigsaw", "image_jigsaw", "shuffled", "puzzle"),
)
def jigsaw(answer: str, right: list[str]) -> Verdict:
    """Pieces put together: 1 - distance from their places over the largest possible; reversed: 0 (VideoSSR)."""
    found = order(answer)
    if not is_permutation(found, right):
        return Verdict(0.0, len(found) > 1, {"exact": 0.0})
    return Verdict(displacement(found, right), True, {"exact": float(found == right)})
