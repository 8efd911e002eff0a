"""GLM-4V, GLM-4.6V and Molmo2 write a clip with the placeholder of a picture.

So features of pictures and clips of one batch stand in the order of their rows, under one name: given apart, all
pictures would be taken before all clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.policies.language.families.default import Family, _joined


class OnePlaceholder(Family):
    model_types = ("glm4v", "glm4v_moe", "glm46v", "molmo2")

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        kinds = {kind for part in parts for kind in part} - {"inputs"}
        if len(kinds) < 2:
            return super().join(parts)
        one = [output for part in parts for kind, output in part.items() if kind != "inputs"]
        return {"mm_encoder_outputs": {"image": _joined([{"pooler_output": o["pooler_output"]} for o in one])}}
