"""Panels of published projects: a name in the list of rewards that stands for several, with their weights.

`rewards: [{name: easyvideor1}]` is the same as writing the two entries out; a `weight` multiplies both. Bonuses that
look at the whole group or at lengths (Video-R1's temporal and length terms) are shaping stages, not rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _spec(name: str, weight: float, **options: Any) -> dict[str, Any]:
    return {"name": name, "weight": weight, "options": options}


PRESETS: dict[str, list[dict[str, Any]]] = {
    "multirole_r1": [_spec("accuracy", 0.9), _spec("text_diversity", 0.1)],
    "easyvideor1": [_spec("accuracy", 0.9), _spec("format_graded", 0.1)],
    "easyr1_math": [_spec("math", 0.9), _spec("format", 0.1, kind="boxed")],
    "easyr1_r1v": [_spec("accuracy", 0.5), _spec("format", 0.5)],
    "video_r1": [_spec("accuracy", 1.0), _spec("format", 1.0)],
    "vlm_r1": [_spec("accuracy", 1.0), _spec("format", 1.0)],
    "temporal_r1": [_spec("temporal_iou", 0.5), _spec("format", 0.5)],
    "vppo": [_spec("accuracy", 1.0)],
    "ton": [_spec("accuracy", 1.0), _spec("format", 1.0), _spec("thought_skipped", 0.0)],
    "unifiedreward_think": [_spec("preference", 1.0), _spec("format", 1.0)],
    "videossr": [_spec("accuracy", 1.0)],
    "gui_libra": [_spec("gui", 0.9), _spec("format", 0.1)],
    "gazal_r1": [_spec("accuracy", 1.0), _spec("format", 0.2), _spec("ngram_repetition", 1.0)],
}


@dataclass(frozen=True)
class Published:
    """A preset that is the reward of a paper's method, as in `mmrl methods`."""

    summary: str
    paper: str
    confidence: str
    modalities: tuple[str, ...]

    def formula(self, name: str) -> str:
        return " + ".join(f"{part['weight']:g} {part['name']}" for part in PRESETS[name])


PUBLISHED: dict[str, Published] = {
    "temporal_r1": Published(
        "Overlap in time and format; the selection of data by the spread of repeated answers is left out.",
        "Temporal-R1, 2025", "partly", ("vlm", "video"),
    ),
    "ton": Published(
        "Accuracy and format, nothing for length: after a start that drops half the thoughts, thinking is a choice.",
        "TON: think or not, 2025; code kokolerk/TON", "partly", ("vlm", "video"),
    ),
    "unifiedreward_think": Published(
        "Which of two is better, and format; trained on the pairs that the cold start got wrong.",
        "UnifiedReward-Think, 2025", "partly", ("vlm", "video"),
    ),
    "videossr": Published(
        "Three pretext tasks by `task`: `temporal` for the perturbed segment, `counts`, `jigsaw`; no format.",
        "VideoSSR, arXiv 2511.06281", "partly", ("video",),
    ),
    "easyvideor1": Published(
        "Eleven kinds of question by `problem_type`, .9 of the sum, and a graded format.",
        "EasyVideoR1, 2026", "partly", ("vlm", "video"),
    ),
    "gazal_r1": Published(
        "Accuracy, format and a price for repetition; recipe `gazal_r1` adds length on a cosine and its adapter.",
        "Gazal-R1, arXiv 2506.21594", "reconstructed", ("vlm", "video"),
    ),
    "video_r1": Published(
        "Accuracy and format; recipe `video_r1` adds T-GRPO, a second group on shuffled frames.",
        "Video-R1, arXiv 2503.21776; code tulerfeng/Video-R1", "partly", ("video",),
    ),
}  # fmt: skip
