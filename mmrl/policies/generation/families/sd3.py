"""Stable Diffusion 3 and 3.5: the plain form, which the base describes."""

from __future__ import annotations

from mmrl.policies.generation.families.base import Generator


class StableDiffusion3(Generator):
    """Two CLIPs and a T5, fixed lengths, guidance in one batch of the pipeline."""
