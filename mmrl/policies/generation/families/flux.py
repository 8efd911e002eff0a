"""FLUX.1-dev (guidance is an input of the model) and FLUX.1-schnell (none); true guidance by choice."""

from __future__ import annotations

from mmrl.policies.generation.families.tokens import Tokens


class Flux(Tokens):
    scale, embeds_guidance = "true_cfg_scale", True
    shared = frozenset({"txt_ids", "img_ids"})
