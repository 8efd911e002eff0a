"""mmrl: one group-relative optimizer for vision-language models, video LLMs and flow-matching generators.

    from mmrl import VLMPipeline                the faces: VLMPipeline, VideoPipeline, FlowPipeline, JointPipeline
    mmrl.objective.compute("dapo", batch, new)  the optimizer alone, on plain tensors

Importing mmrl loads none of torch, transformers or diffusers: names below load their module when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmrl import _torchvision

if TYPE_CHECKING:
    from mmrl import objective
    from mmrl.pipelines.flow import FlowPipeline
    from mmrl.pipelines.joint import JointPipeline
    from mmrl.pipelines.video import VideoPipeline
    from mmrl.pipelines.vlm import VLMPipeline

__version__ = "0.1.0"
__all__ = ["FlowPipeline", "JointPipeline", "VLMPipeline", "VideoPipeline", "__version__", "objective"]

_PIPELINES = {
    "VLMPipeline": "mmrl.pipelines.vlm",
    "VideoPipeline": "mmrl.pipelines.video",
    "FlowPipeline": "mmrl.pipelines.flow",
    "JointPipeline": "mmrl.pipelines.joint",
}

_torchvision.install()


def __getattr__(name: str) -> Any:
    if name == "objective":
        return importlib.import_module("mmrl.objective")
    if name in _PIPELINES:
        return getattr(importlib.import_module(_PIPELINES[name]), name)
    raise AttributeError(f"module 'mmrl' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
