"""ESSA: what is searched are the singular values of LoRA factors; their directions stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.tools import tool


@dataclass
class Factor:
    """A LoRA matrix as U diag(s) V^T. The parameter is the model's own; U (m, r), V (r, n) and s (r,) are frozen."""

    parameter: nn.Parameter
    u: Tensor
    s: Tensor
    vh: Tensor

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Factor:
        u, s, vh = torch.linalg.svd(parameter.detach().double(), full_matrices=False)
        return cls(parameter, u, s, vh)

    @torch.no_grad()
    def put(self, values: Tensor) -> None:
        """The matrix with these in place of its largest singular values (k,), k <= r."""
        s = torch.cat([values.to(self.s), self.s[len(values) :]])
        self.parameter.copy_((self.u * s) @ self.vh)


@tool(
    "essa",
    command="mmrl train vlm CONFIG recipe=essa policy.adapter=FOLDER",
    paper="ESSA: evolutionary strategies for scalable alignment, arXiv 2507.04453",
    formula="A = U_A S_A V_A^T, B alike; x = leading diagonals of all S; CMA-ES on x by mean reward, forward only",
    confidence="partly",
)
class SingularValues:
    """The leading singular values of every LoRA factor of a model, as one vector.

    share  of each factor's rank that is searched, at least one

    A fresh LoRA has B = 0, whose directions mean nothing: the search starts from an adapter that was trained, as the
    paper's does. Source: the paper's text and first pages; which values count as leading is ours.
    """

    def __init__(self, model: nn.Module, share: float = 1.0):
        if not 0 < share <= 1:
            raise ConfigError(f"essa: share={share}; expected above 0 and at most 1")
        found = [p for n, p in model.named_parameters() if p.requires_grad and "lora_" in n and p.dim() == 2]
        if not found:
            raise ConfigError("essa searches LoRA factors, and this policy trains none: give policy.adapter=FOLDER")
        self.factors = [Factor.of(p) for p in found]
        self.counts = [max(1, round(share * len(f.s))) for f in self.factors]
        if empty := sum(float(f.s[0]) == 0 for f in self.factors):
            raise ConfigError(
                f"essa: {empty} of {len(self.factors)} LoRA factors are zero, as a fresh adapter's are, and have no "
                "directions; start from a trained one with policy.adapter=FOLDER"
            )

    def vector(self) -> Tensor:
        """(n,) float64, as the adapter was."""
        return torch.cat([f.s[:k] for f, k in zip(self.factors, self.counts, strict=True)])

    def put(self, vector: Tensor) -> None:
        """The model with these singular values."""
        for factor, values in zip(self.factors, vector.split(self.counts), strict=True):
            factor.put(values)

    def described(self) -> dict[str, Any]:
        return {"essa/factors": len(self.factors), "essa/numbers": sum(self.counts)}
