"""A patch embedding is one matrix product; vision towers write it as a convolution whose kernel is its whole input.

The convolution is a tenth slower on CPU, and 10 to 50,000 times on some GPUs, where cuDNN has no kernel for the shape
(transformers issue 45750, pytorch issue 174051). Weights keep their names and shapes, so checkpoints are the same.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PatchProjection(nn.Conv3d):
    """(N, C, t, p, p) -> (N, d, 1, 1, 1) for a kernel of t x p x p; equal to the convolution up to rounding."""

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def project_patches(visual: nn.Module) -> None:
    """Turn the patch embedding of a vision tower, where it is such a convolution, into a `PatchProjection`."""
    embedding = getattr(visual, "patch_embed", None)
    projection = getattr(embedding, "proj", None)
    plain = type(projection) is nn.Conv3d and projection.stride == projection.kernel_size
    if plain and projection.padding == (0, 0, 0) and projection.dilation == (1, 1, 1) and projection.groups == 1:
        projection.__class__ = PatchProjection
