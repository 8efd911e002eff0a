"""The pipeline for vision-language models."""

from __future__ import annotations

from typing import ClassVar

from mmrl.pipelines.pipeline import Pipeline


class VLMPipeline(Pipeline):
    """Fine-tune a vision-language model.

    pipe = VLMPipeline.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct", lora={"rank": 32}, dtype="bfloat16")
    pipe.train("data.jsonl", rewards=["accuracy"], recipe="vppo", training={"steps": 200})
    pipe.save_pretrained("my-adapter")
    """

    modality: ClassVar[str] = "vlm"
