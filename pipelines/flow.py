"""The pipeline for flow-matching generators."""

from __future__ import annotations

from typing import ClassVar

from mmrl.pipelines.pipeline import Pipeline


class FlowPipeline(Pipeline):
    """Fine-tune a flow-matching image generator.

    pipe = FlowPipeline.from_pretrained("stabilityai/stable-diffusion-3.5-medium", lora={"rank": 32})
    pipe.train("prompts.jsonl", rewards=["clip_score"], recipe="flow_grpo_fast")
    images = pipe.generate(["a red circle on the left"])
    """

    modality: ClassVar[str] = "flow"
