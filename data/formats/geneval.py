"""GenEval metadata: `prompt`, and what a detector must find: `include` and `exclude` of class, count, color, position.

Source: djghosh13/geneval, prompts/evaluation_metadata.jsonl; flow_grpo trains on the same. The reward `geneval` reads
these columns.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    return has(raw, "prompt", "include") and isinstance(raw["include"], list)


FORMAT = Format("geneval", "GenEval metadata", recognise, uses=frozenset({"include", "exclude", "tag"}))
