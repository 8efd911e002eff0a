"""Pairs of TRL's preference trainers: `prompt`, `chosen`, `rejected`; texts or messages, the prompt apart or in both.

Source: huggingface/trl, docs/source/dataset_formats.md. The chosen answer is the truth where there is no `solution`;
the rejected one stays a column, which rewards may read.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, has, is_messages
from mmrl.data.images import describe
from mmrl.data.sources import RowError


def recognise(raw: Raw) -> bool:
    return has(raw, "chosen", "rejected") and all(_is_answer(raw[name]) for name in ("chosen", "rejected"))


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) or is_messages(value)


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    before, chosen = _split("chosen", values["chosen"])
    _, rejected = _split("rejected", values["rejected"])
    rest = {k: v for k, v in values.items() if k != "chosen"} | {"rejected": rejected}
    if rest.get("solution") is None:
        rest["solution"] = chosen
    if rest.get("prompt") is None and before:
        rest["prompt"] = before
    return rest


def _split(name: str, value: Any) -> tuple[list[Any], Any]:
    """The messages before the answer, and the answer."""
    if isinstance(value, str):
        return [], value
    if value[-1].get("role") != "assistant":
        said = f"expected messages that end with one by 'assistant', got {describe(value)}"
        raise RowError(name, said, "put the turns before the answer into `prompt`")
    return value[:-1], value[-1].get("content")


FORMAT = Format(
    "preference", "pairs of TRL", recognise, adapt=adapt, uses=frozenset({"chosen", "rejected"}), truth="chosen"
)
