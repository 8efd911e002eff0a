"""The pixels of an encoded prompt: patch rows back to frames, changed as a view says, and patch rows again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmrl.policies.language.encoding import Encoded
from mmrl.policies.language.families.base import Family
from mmrl.policies.views import PIXEL_VIEWS, VIDEO_VIEWS, PixelScale
from mmrl.randomness import Key
from mmrl.stages import View


def corrupted(
    encoded: Encoded, view: View, prompt_id: str, seed: int, family: Family, scales: dict[str, PixelScale]
) -> Encoded:
    """`encoded` with the pixels a view shows. Each image and each video draws its own randomness."""
    media = dict(encoded.media)
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels not in media or (kind == "image" and view.kind in VIDEO_VIEWS):
            continue
        parts, start, scale = [], 0, scales[kind]
        for index, grid in enumerate(media[f"{kind}_grid_thw"]):
            rows = media[pixels][start : start + int(grid.prod())]
            start += len(rows)
            frames = scale.unnormalise(unpatchify(rows, grid, family))
            pair = family.temporal_patch if kind == "image" or view.kind == "patch_black" else 1
            rng = Key(seed, prompt=prompt_id, member=index, purpose=f"view {kind} {view}").generator()
            frames = PIXEL_VIEWS[view.kind](frames, pair, rng, **dict(view.options))
            parts.append(patchify(scale.normalise(frames), family))
        media[pixels] = torch.cat(parts)
    return replace(encoded, media=media, features=None)


def unpatchify(rows: Tensor, grid: Tensor, family: Family) -> Tensor:
    """(t*h*w patches, 3*k*p*p) processor rows -> (t*k, 3, h*p, w*p) frames."""
    t, h, w = grid.tolist()
    m, p, k = family.merge, family.patch, family.temporal_patch
    cells = rows.view(t, h // m, w // m, m, m, 3, k, p, p)
    return cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * k, 3, h * p, w * p)


def patchify(frames: Tensor, family: Family) -> Tensor:
    """The inverse of `unpatchify`: rows grouped by merged token, as Qwen-VL processors write them."""
    m, p, k = family.merge, family.patch, family.temporal_patch
    count, channels, height, width = frames.shape
    t, h, w = count // k, height // p, width // p
    cells = frames.reshape(t, k, channels, h // m, m, p, w // m, m, p)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, channels * k * p * p)
