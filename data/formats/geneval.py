"""GenEval metadata: `prompt`, and what a detector must find: `include` and `exclude` of class, count, color, position.

Source: djghosh13/geneval, prompts/evaluation_metadata.jsonl; flow_grpo trains on the same. The reward `geneval` reads
these columns.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    return has(raw, "prompt", "include") and isinstance(raw["include"], list)


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    """Few rows exclude something; a reward is given a column only where all rows of a batch have it."""
    return values if values.get("exclude") is not None else {**values, "exclude": []}


FORMAT = Format("geneval", "GenEval metadata", recognise, adapt=adapt, uses=frozenset({"include", "exclude", "tag"}))
