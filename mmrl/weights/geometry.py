"""How an update lies to the weights it moves: does it turn their principal directions, or keep off them?"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.tools import tool

SHARE = 0.01
"""Of the rank: how many singular directions count as principal, at least one."""


def principal_angle(first: Tensor, second: Tensor) -> float:
    """The largest angle, in radians, between the spans of two orthonormal bases (m, k)."""
    inside = second - first @ (first.T @ second)
    return float(torch.linalg.matrix_norm(inside, ord=2).clamp(max=1).asin())


def unchanged_in_bfloat16(weight: Tensor, update: Tensor) -> float:
    """Share of the entries that bfloat16 stores alike before and after."""
    return float((weight.bfloat16() == (weight + update).bfloat16()).float().mean())


@tool(
    "path_not_taken",
    command="mmrl weights RUN",
    paper="The Path Not Taken: weight geometry of RLVR, arXiv 2511.08567",
    formula="||s(W + D) - s(W)|| / ||s(W)||; angle(U_k(W), U_k(W + D)); ||U_k^T D V_k||^2 / ||D||^2 over k^2 / (m n); "
    "share of entries that bfloat16 stores alike",
    confidence="partly",
)
def geometry(weight: Tensor, update: Tensor, *, share: float = SHARE) -> dict[str, float]:
    """What an update did to a matrix: its spectrum, its principal directions, and how much of it lies along them.

    weight, update (m, n). share: of the rank that counts as principal. Returns

    moved      ||D|| / ||W||
    spectrum   ||s(W + D) - s(W)|| / ||s(W)||, s the singular values
    angle      the larger of the largest principal angles of the left and right spans, in radians
    principal  share of ||D||^2 inside the principal spans; `chance`: what a random D would have, k^2 / (m n)
    unchanged  share of entries that bfloat16 stores alike: what looks like a sparse update is partly rounding

    An update of zero has no direction: `principal` is 0. Computed in float64; one SVD of W and one of W + D. Source:
    the paper's abstract and a secondary note; the choice of numbers is ours.
    """
    before, change = weight.double(), update.double()
    u, s, vh = torch.linalg.svd(before, full_matrices=False)
    u2, s2, vh2 = torch.linalg.svd(before + change, full_matrices=False)
    k = max(1, int(share * len(s)))
    size = float(change.norm())
    inside = float((u[:, :k].T @ change @ vh[:k].T).norm())
    angles = (principal_angle(u[:, :k], u2[:, :k]), principal_angle(vh[:k].T, vh2[:k].T))
    return {
        "moved": size / max(float(before.norm()), torch.finfo(torch.float64).tiny),
        "spectrum": float((s2 - s).norm() / s.norm().clamp(min=torch.finfo(torch.float64).tiny)),
        "angle": max(angles),
        "principal": (inside / size) ** 2 if size > 0 else 0.0,
        "chance": k * k / weight.numel(),
        "unchanged": unchanged_in_bfloat16(weight, update),
    }
