"""verl-omni: text-to-image rows of verl, with a `negative_prompt` that is messages like the prompt.

Source: verl-omni, examples/data_preprocess/qwenimage_ocr.py. The negative prompt becomes its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.data.formats import verl
from mmrl.data.formats.base import Format, Raw, is_messages
from mmrl.data.sources import RowError


def recognise(raw: Raw) -> bool:
    return is_messages(raw.get("prompt")) and is_messages(raw.get("negative_prompt"))


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    said = [_text(m["content"]) for m in values["negative_prompt"] if m["role"] == "user"]
    values["negative_prompt"] = "\n".join(said).strip()
    return verl.adapt(values) if verl.recognise(values) else values


def _text(content: Any) -> str:
    """The text of a content, be it written in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in parts):
        raise RowError("negative_prompt", f"expected text, got {content!r:.80}")
    return "".join(p["text"] for p in parts)


FORMAT = Format(
    "verl_omni",
    "verl-omni",
    recognise,
    adapt=adapt,
    uses=verl.FORMAT.uses | {"negative_prompt"},
    truth=verl.FORMAT.truth,
)
