"""Keyed randomness: every draw is named, so it depends neither on batch layout nor on what was drawn before.

A draw is keyed by (seed, step, prompt id, member, purpose). One rank equals two, and a resumed run equals
one that never stopped, because no generator state travels between draws.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Key:
    """The name of a random draw. `key.at(prompt="a", member=3)` names a narrower one."""

    seed: int
    step: int = 0
    prompt: str = ""
    member: int = 0
    purpose: str = ""

    def at(self, **parts) -> Key:
        return replace(self, **parts)

    @property
    def number(self) -> int:
        """A 63-bit integer, equal for equal keys on every machine."""
        text = "\x1f".join(map(str, (self.seed, self.step, self.prompt, self.member, self.purpose)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self) -> torch.Generator:
        """A CPU generator: the same numbers whatever the accelerator."""
        return torch.Generator().manual_seed(self.number)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator(), dtype=torch.float64)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator())
