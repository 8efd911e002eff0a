"""Changed prompts: the same actions under media that are masked, blurred, shuffled or gone.

A view is a value (kind, options). What it draws is keyed by step, prompt and member: every rollout has a mask of its
own, as VPPO and PAPO draw theirs, and a pass can be repeated exactly. With `fresh: false` it is keyed by the prompt
alone: one mask for all its rollouts and visits, whose passes share the prompt and cost a fraction.

Pixel views act on frames after the resize, so that token ids, grids and positions stay as they were;
`language.pixels` rebuilds the frames from what a processor made of them. `remove_media` is another prompt:
re-tokenised without placeholders, so of another length. `beside` shows the prompt that a rollout strategy put beside
it, such as the one without a hint; a prompt that has none of that name is shown as it is.

Videos are corrupted as images are. (VPPO's released code corrupts images only, so a video keeps a clean input
and a perception score of 0.)
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmrl.errors import ConfigError, unknown
from mmrl.randomness import Key
from mmrl.record import Prompt, Rollouts
from mmrl.stages import View

PixelView = Callable[..., Tensor]
PIXEL_VIEWS: dict[str, PixelView] = {}
VIDEO_VIEWS = frozenset({"shuffle_frames", "drop_frames"})
REMOVE_MEDIA, BESIDE = "remove_media", "beside"
DRAWN = frozenset({"patch_black", "noise", "degraded", "shuffle_frames", "drop_frames"})
"""Views that are different at every draw; they take the option `fresh`, true by default."""
FRESH = "fresh"


@dataclass(frozen=True)
class PixelScale:
    """How pixels were normalised: value = (pixel / 255 - mean) / std. mean, std: (3,)

    Images and videos may differ: Qwen3-VL's video processor has other constants than its image processor.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, processor: Any) -> dict[str, PixelScale]:
        """The scales of a processor's images and videos."""
        parts = {"image": processor.image_processor, "video": processor.video_processor}
        return {k: cls(torch.tensor(p.image_mean), torch.tensor(p.image_std)) for k, p in parts.items()}

    def unnormalise(self, values: Tensor) -> Tensor:
        """(F, 3, H, W) model values -> 0 to 255."""
        return (values * self.std[:, None, None] + self.mean[:, None, None]) * 255

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels.clamp(0, 255) / 255 - self.mean[:, None, None]) / self.std[:, None, None]


def pixel_view(function: PixelView) -> PixelView:
    """Register `f(frames (F, 3, H, W) in 0..255, pair, rng, **options) -> frames`.

    pair  frames that share one patch: an image stands there `pair` times, and must stay one image
    """
    PIXEL_VIEWS[function.__name__] = function
    return function


@pixel_view
def patch_black(frames: Tensor, pair: int, rng: torch.Generator, *, share: float = 0.5, size: int = 14) -> Tensor:
    """Each `size` x `size` square turns black with probability `share` (VPPO, arXiv 2510.09285)."""
    count, _, height, width = frames.shape
    cells = (count // pair, 1, -(-height // size), -(-width // size))
    black = torch.rand(cells, generator=rng) < share
    black = black.repeat_interleave(pair, 0).repeat_interleave(size, 2).repeat_interleave(size, 3)
    return frames.masked_fill(black[:, :, :height, :width], 0.0)


@pixel_view
def noise(frames: Tensor, pair: int, rng: torch.Generator, *, std: float = 65.0) -> Tensor:
    """Gaussian noise of `std` grey levels of 255 (Q-Hawkeye, arXiv 2601.22920, uses 65)."""
    count, *rest = frames.shape
    drawn = torch.randn(count // pair, *rest, generator=rng).repeat_interleave(pair, 0)
    return frames + std * drawn


@pixel_view
def gray(frames: Tensor, pair: int, rng: torch.Generator) -> Tensor:
    """Luminance in all three channels (ITU-R 601 weights)."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (frames * weights[:, None, None]).sum(1, keepdim=True).expand_as(frames)


@pixel_view
def blur(frames: Tensor, pair: int, rng: torch.Generator, *, radius: float = 4.0) -> Tensor:
    """Gaussian blur with standard deviation `radius` pixels."""
    reach = min(int(3 * radius) or 1, *(side - 1 for side in frames.shape[-2:]))
    offsets = torch.arange(-reach, reach + 1, dtype=frames.dtype)
    kernel = torch.exp(-0.5 * (offsets / radius) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(frames, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


@pixel_view
def darken(frames: Tensor, pair: int, rng: torch.Generator, *, factor: float = 0.5) -> Tensor:
    """Brightness times `factor`."""
    return frames * factor


@pixel_view
def jpeg(frames: Tensor, pair: int, rng: torch.Generator, *, quality: int = 5) -> Tensor:
    """JPEG compression and back; quality 1 (worst) to 95."""
    out = []
    for frame in frames.round().clamp(0, 255).to(torch.uint8):
        buffer = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        pixels = torch.frombuffer(bytearray(Image.open(buffer).convert("RGB").tobytes()), dtype=torch.uint8)
        out.append(pixels.view(frame.shape[1], frame.shape[2], 3).permute(2, 0, 1))
    return torch.stack(out).to(frames.dtype)


@pixel_view
def degraded(frames: Tensor, pair: int, rng: torch.Generator) -> Tensor:
    """One of four: `noise` of 65, `blur` of 4, `jpeg` of 5, `darken` by half (the pairs of Q-Hawkeye, 2601.22920)."""
    kinds: tuple[PixelView, ...] = (noise, blur, jpeg, darken)
    return kinds[int(torch.randint(len(kinds), (1,), generator=rng))](frames, pair, rng)


@pixel_view
def shuffle_frames(frames: Tensor, pair: int, rng: torch.Generator) -> Tensor:
    """Frames in another order; the timestamps stay (T-GRPO of Video-R1, arXiv 2503.21776)."""
    return frames[torch.randperm(len(frames), generator=rng)]


@pixel_view
def drop_frames(frames: Tensor, pair: int, rng: torch.Generator, *, share: float = 0.5) -> Tensor:
    """Each frame turns black with probability `share`."""
    black = torch.rand(len(frames), generator=rng) < share
    return frames.masked_fill(black[:, None, None, None], 0.0)


def check_view(view: View, offered: frozenset[str]) -> None:
    """Unknown kinds and options are errors that name the nearest."""
    if view.kind not in offered:
        raise ConfigError(unknown("view", view.kind, offered))
    if view.kind in (REMOVE_MEDIA, BESIDE):
        known: set[str] = {"prompt"} if view.kind == BESIDE else set()
    else:
        parameters = inspect.signature(PIXEL_VIEWS[view.kind]).parameters.values()
        known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        known |= {FRESH} if view.kind in DRAWN else set()
    for option, _ in view.options:
        if option not in known:
            raise ConfigError(f"view {view.kind!r}: {unknown('option', option, known)}")


def draws_of(view: View, rollouts: Rollouts, seed: int) -> list[Key]:
    """The key of the view's randomness for each of `rollouts.prompts`: one a prompt for the whole run or, of a fresh
    view, whose rollouts hold one prompt a row, one a step and member."""
    keys = [Key(seed, prompt=prompt.id) for prompt in rollouts.prompts]
    if not is_fresh(view):
        return keys
    return [key.at(step=view.step, member=m) for key, m in zip(keys, rollouts.member.tolist(), strict=True)]


def is_fresh(view: View) -> bool:
    """Whether each row of each step sees the prompt in a way of its own."""
    return view.kind in DRAWN and bool(dict(view.options).get(FRESH, True))


def options_of(view: View) -> dict[str, Any]:
    """What the function of a pixel view is called with."""
    return {name: value for name, value in view.options if name != FRESH}


def without_media(prompt: Prompt) -> Prompt:
    """The prompt with every image and video part left out."""
    messages = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part for part in content if part.get("type") not in ("image", "video")]
        messages.append({**message, "content": content})
    return replace(prompt, messages=messages, images=[], videos=[])
