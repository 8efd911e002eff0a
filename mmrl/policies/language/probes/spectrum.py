"""Durian's perceptual difficulty: the entropy of the spectrum of a prompt's visual features (arXiv 2602.21743).

    F (P, d) patch features of the vision encoder, centred over patches
    lambda   eigenvalues of their covariance, p = lambda / sum lambda
    Hs       - sum p log p, in nats

One flat colour gives features of rank 0 or 1 and Hs = 0; a busy image spreads over many directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.policies.language.encoded import Encoded, to_device


def spectral_entropy(features: Tensor) -> Tensor:
    """(P, d) -> scalar. All-equal or all-zero features give 0."""
    centred = (features - features.mean(0)).double()
    # F F' and F' F share their non-zero eigenvalues: take the smaller.
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    spectrum = torch.linalg.eigvalsh(gram).clamp_min(0)
    total = spectrum.sum()
    if total <= torch.finfo(features.dtype).eps * features.double().square().sum():
        return torch.zeros((), dtype=torch.float64)
    share = spectrum / total
    return torch.special.entr(share).sum().clamp_min(0)


@torch.no_grad()
def visual_entropy(model: Any, entry: Encoded) -> float:
    """Hs of one prompt; patches of all its images and frames together. No media: 0."""
    if not entry.media:
        return 0.0
    media = to_device(entry.media, next(model.parameters()).device)
    return float(spectral_entropy(model.patch_features(media).float()))
