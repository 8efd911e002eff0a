"""verl-omni: text-to-image rows of verl, with a `negative_prompt` that is messages like the prompt.

Source: verl-omni, examples/data_preprocess/qwenimage_ocr.py. The negative prompt becomes its text.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats import verl
from mmrl.data.formats.base import Format, Raw, is_messages


def recognise(raw: Raw) -> bool:
    return is_messages(raw.get("prompt")) and is_messages(raw.get("negative_prompt"))


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    said = [m["content"] for m in values["negative_prompt"] if m["role"] == "user" and isinstance(m["content"], str)]
    values["negative_prompt"] = "\n".join(said).strip()
    return verl.adapt(values) if verl.recognise(values) else values


FORMAT = Format("verl_omni", "verl-omni", recognise, adapt=adapt, uses=verl.FORMAT.uses | {"negative_prompt"})
