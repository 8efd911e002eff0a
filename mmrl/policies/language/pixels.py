"""The pixels of an encoded prompt, changed as a view says.

Where a family's pictures are patch rows, these go back to frames, are changed, and become patch rows again: a view acts
after the resize. Of other families the picture itself is changed, before the processor cuts it into tiles and a
thumbnail, so that all of them show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.images import open_image
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.families.qwen import Qwen
from mmrl.policies.views import PIXEL_VIEWS, VIDEO_VIEWS, PixelScale, options_of
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.stages import View


def corrupted(encoded: Encoded, view: View, draw: Key, family: Qwen, scales: dict[str, PixelScale]) -> Encoded:
    """`encoded` with the pixels a view shows. Each image and each video has a draw of its own, named after `draw`."""
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
            frames = PIXEL_VIEWS[view.kind](frames, pair, _draws(draw, kind, index, view), **options_of(view))
            parts.append(patchify(scale.normalise(frames), family))
        media[pixels] = torch.cat(parts)
    return replace(encoded, media=media, features=None)


def unpatchify(rows: Tensor, grid: Tensor, family: Qwen) -> Tensor:
    """(t*h*w patches, 3*k*p*p) processor rows -> (t*k, 3, h*p, w*p) frames."""
    t, h, w = grid.tolist()
    m, p, k = family.merge, family.patch, family.temporal_patch
    cells = rows.view(t, h // m, w // m, m, m, 3, k, p, p)
    return cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * k, 3, h * p, w * p)


def patchify(frames: Tensor, family: Qwen) -> Tensor:
    """The inverse of `unpatchify`: rows grouped by merged token, as Qwen-VL processors write them."""
    m, p, k = family.merge, family.patch, family.temporal_patch
    count, channels, height, width = frames.shape
    t, h, w = count // k, height // p, width // p
    cells = frames.reshape(t, k, channels, h // m, m, p, w // m, m, p)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, channels * k * p * p)


def shown_otherwise(
    prompt: Prompt,
    entry: Encoded,
    view: View,
    draw: Key,
    frames: Sequence[Frames],
    encode: Callable[[Prompt, Sequence[Frames]], Encoded],
) -> Encoded:
    """`prompt` with its pictures and frames as the view shows them, encoded again; tokens must stay what they were."""
    images = [open_image(image, prompt) for image in prompt.images]
    if view.kind not in VIDEO_VIEWS:
        images = [_picture(image, view, _draws(draw, "image", n, view)) for n, image in enumerate(images)]
    clips = [
        replace(clip, pixels=_changed(clip.pixels, view, _draws(draw, "video", n, view)))
        for n, clip in enumerate(frames)
    ]
    changed = encode(replace(prompt, images=images), clips)
    if not torch.equal(changed.ids, entry.ids):
        raise PolicyError(
            f"prompt {prompt.id!r}: under the view {view.kind!r} it has {len(changed)} tokens, {len(entry)} without; "
            "this family's tokens depend on the pixels, so views of them cannot be compared"
        )
    return changed


def _draws(draw: Key, kind: str, index: int, view: View) -> torch.Generator:
    return draw.at(purpose=f"view {kind} {index} {view}").generator()


def _changed(frames: Tensor, view: View, rng: torch.Generator) -> Tensor:
    """(F, 3, H, W) uint8. A black square stands in all frames of a clip."""
    pair = len(frames) if view.kind == "patch_black" else 1
    seen = PIXEL_VIEWS[view.kind](frames.float(), pair, rng, **options_of(view))
    return seen.round().clamp(0, 255).to(torch.uint8)


def _picture(image: Any, view: View, rng: torch.Generator) -> Any:
    from PIL import Image

    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
    seen = _changed(pixels.permute(2, 0, 1)[None], view, rng)[0]
    return Image.fromarray(seen.permute(1, 2, 0).contiguous().numpy())
