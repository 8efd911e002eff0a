"""The pipeline for video LLMs."""

from __future__ import annotations

from typing import ClassVar

from mmrl.pipelines.pipeline import Pipeline


class VideoPipeline(Pipeline):
    """Fine-tune a video LLM; clips are decoded once, through the cache.

    pipe = VideoPipeline.from_pretrained("Qwen/Qwen3-VL-4B-Instruct", sampling={"fps": 2, "max_frames": 64})
    pipe.train("clips.jsonl", rewards=["accuracy"], recipe="dapo")
    """

    modality: ClassVar[str] = "video"
