"""Chroma: FLUX.1 with a text mask and guidance proper."""

from __future__ import annotations

from mmrl.policies.generation.families.tokens import Tokens


class Chroma(Tokens):
    shared = frozenset({"txt_ids", "img_ids"})
    checkpointing = "its checkpointed single blocks drop the attention mask, and the velocity changes by .43"
