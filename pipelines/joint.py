"""The pipeline for two policies that write and paint in turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from mmrl.pipelines.pipeline import Pipeline

Model = str | Path | Mapping[str, Any]


class JointPipeline(Pipeline):
    """Fine-tune a vision-language model and a generator together, under one reward.

    pipe = JointPipeline.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct", "stabilityai/stable-diffusion-3.5-medium")
    pipe.train("prompts.jsonl", rewards=[{"name": "clip_score", "of": "picture"}], recipe="unigrpo_joint")
    [[told]] = pipe.generate(["a fox in the snow"])  # told.text, told.picture
    """

    modality: ClassVar[str] = "joint"

    @classmethod
    def from_pretrained(cls, writer: Model, painter: Model, **options: Any) -> Self:  # type: ignore[override]
        """writer, painter: a name or path each, or the whole `policy:` section of that side as a mapping. `options` are
        those of the other pipelines: `config`, `seed`, and fields of the joint section, such as
        `turns=[{"by": "writer"}, {"by": "painter", "ask": "{text}"}]` or `train=["painter"]`."""
        sides: dict[str, Any] = {"writer": _section(writer), "painter": _section(painter)}
        return super().from_pretrained("", **{**sides, **options})


def _section(model: Model) -> dict[str, Any]:
    return dict(model) if isinstance(model, Mapping) else {"model": str(model)}
