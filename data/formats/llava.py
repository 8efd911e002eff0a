"""LLaVA and VLM-R1: `conversations` of {"from", "value"}, whose last answer is the truth; `image` one or several.

Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; om-ai-lab/VLM-R1, grpo_jsonl.py (`accu_reward_method`).
LLaVA-Video writes `<image>` where a video goes.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, is_messages, messages_in
from mmrl.data.images import describe
from mmrl.data.sources import RowError

METHODS = {"mcq": "choice", "yes_no": "boolean", "math": "math", "iou": "box", "rec": "box", "map": "boxes"}
"""`accu_reward_method` of VLM-R1 to our tasks; `default` names none."""


def recognise(raw: Raw) -> bool:
    return is_messages(raw.get("conversations")) or messages_in(raw.get("conversations")) is not None


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    method = values.get("accu_reward_method")
    if values.get("task") is None and method not in (None, "", "default"):
        values["task"] = METHODS.get(str(method), str(method))
    if values.get("prompt") is None:
        return values
    said = messages_in(values["prompt"]) or values["prompt"]
    if not is_messages(said):
        raise RowError("prompt", f"expected turns {{'from', 'value'}}, got {describe(said)}")
    turns = [{k: v for k, v in turn.items() if v is not None or k == "value"} for turn in said]
    if isinstance(values.get("system"), str) and values["system"].strip():
        turns.insert(0, {"role": "system", "content": values.pop("system")})
    if _has(values, "video") and not _has(values, "image"):
        turns = [_videos_for_images(turn) for turn in turns]
    return {**values, "prompt": turns}


def _has(values: dict[str, Any], kind: str) -> bool:
    return bool(values.get(kind)) or bool(values.get(f"{kind}s"))


def _videos_for_images(turn: dict[str, Any]) -> dict[str, Any]:
    return {k: v.replace("<image>", "<video>") if k == "value" and isinstance(v, str) else v for k, v in turn.items()}


FORMAT = Format(
    "llava", "LLaVA, VLM-R1", recognise, names={"prompt": "conversations"}, adapt=adapt, known_by=("conversations",)
)
