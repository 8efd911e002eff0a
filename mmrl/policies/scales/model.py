"""A small next-scale model of our own: patches, a codebook a scale, and a transformer that sees coarser scales.

It is a `PreTrainedModel` of transformers, so that `save_pretrained` and `from_pretrained` are those everyone knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle
from transformers import PretrainedConfig, PreTrainedModel

from mmrl.errors import DataError, unknown
from mmrl.randomness import Key

ROUNDS, AT_ONCE = 10, 8192
"""Of k-means, and vectors that are compared with a codebook at once."""


class NextScaleConfig(PretrainedConfig):
    """sides      tokens along the side of each scale, rising
    patch      pixels along the side of a token of the finest scale: pictures are `patch * sides[-1]` wide
    codes      codebook entries of each scale
    residual   a scale holds what the coarser ones lack (VAR), or a picture of its own (FlexVAR)
    words      those that texts are made of; a text is the set of its words
    """

    model_type = "mmrl_next_scale"

    def __init__(
        self, sides: Sequence[int] = (1, 2, 4, 8), patch: int = 3, codes: int = 640, residual: bool = False,
        words: Sequence[str] = (), width: int = 64, layers: int = 3, heads: int = 4, **others: Any,
    ):  # fmt: skip
        self.sides, self.patch, self.codes, self.residual = list(sides), patch, codes, residual
        self.words, self.width, self.layers, self.heads = list(words), width, layers, heads
        super().__init__(**others)


class NextScaleModel(PreTrainedModel):
    """VAR in small: codebooks are k-means centres and never train, the transformer does."""

    config_class = NextScaleConfig

    def __init__(self, config: NextScaleConfig):
        super().__init__(config)
        sides, width, channels = config.sides, config.width, 3 * config.patch**2
        self.register_buffer("codebooks", torch.zeros(len(sides), config.codes, channels))
        self.words = nn.Embedding(max(1, len(config.words)), width)
        self.scale = nn.Parameter(torch.randn(len(sides), width) * 0.02)
        self.place = nn.Parameter(torch.randn(sum(side**2 for side in sides), width) * 0.02)
        self.enter = nn.Linear(channels, width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.heads = nn.ModuleList(nn.Linear(width, config.codes) for _ in sides)
        self._known = {word: place for place, word in enumerate(config.words)}
        self.post_init()

    def tokens(self, pictures: Tensor) -> list[Tensor]:
        """(B, 3, H, W) from 0 to 1 -> (B, side**2) of every scale, coarse to fine."""
        return self._quantized(pictures)[0]

    def logits(self, texts: Sequence[str], inputs: Sequence[Tensor]) -> list[Tensor]:
        """(B, side**2, codes) of the first scale and of each that has an input (B, side**2, C)."""
        sides = self.config.sides[: len(inputs) + 1]
        sizes = [side**2 for side in sides]
        asked = self._asked(texts)
        entered = [asked.new_zeros(len(texts), sizes[0], self.config.width), *map(self.enter, inputs)]
        scale = torch.repeat_interleave(
            torch.arange(len(sides), device=asked.device), torch.tensor(sizes).to(asked.device)
        )
        x = torch.cat(entered, 1) + asked[:, None] + self.scale[scale] + self.place[: len(scale)]
        hidden = self.blocks(x, mask=scale[:, None] < scale[None])  # True: not to be seen
        return [head(part) for head, part in zip(self.heads, hidden.split(sizes, 1), strict=False)]

    def next_input(self, tokens: Sequence[Tensor]) -> Tensor:
        """Tokens of the first scales -> (B, side**2, C): what they show, at the size of the scale that follows."""
        side = self.config.sides[len(tokens)]
        return interpolate(self._shown(tokens), (side, side), mode="area").flatten(2).transpose(1, 2)

    def decode(self, tokens: Sequence[Tensor]) -> Tensor:
        """-> (B, 3, H, W) from 0 to 1, of all scales or of the first few."""
        return pixel_shuffle(self._shown(tokens), self.config.patch).clamp(0, 1)

    @torch.no_grad()
    def fit(self, pictures: Tensor, key: Key) -> float:
        """Codebooks from pictures, scale by scale. Returns the root mean square error of what they show again."""
        _, shown = self._quantized(pictures, key)
        return float((pixel_shuffle(shown, self.config.patch) - pictures).square().mean().sqrt())

    def _quantized(self, pictures: Tensor, key: Key | None = None) -> tuple[list[Tensor], Tensor]:
        """Tokens of every scale, and the patches they show; with a key each codebook is made on the way."""
        wide = self.config.patch * self.config.sides[-1]
        if pictures.shape[1:] != (3, wide, wide):
            got = " x ".join(map(str, reversed(pictures.shape[2:])))
            raise DataError(
                f"pictures are {got}, and the model writes {wide} x {wide}: patch={self.config.patch} times "
                f"{self.config.sides[-1]}, the finest of sides={self.config.sides}"
            )
        patches = pixel_unshuffle(pictures.to(self.codebooks), self.config.patch)
        tokens: list[Tensor] = []
        shown = torch.zeros_like(patches)
        for scale, side in enumerate(self.config.sides):
            left = patches - shown if self.config.residual else patches
            vectors = interpolate(left, (side, side), mode="area").permute(0, 2, 3, 1).flatten(0, 2)
            if key is not None:
                self.codebooks[scale] = centres(vectors, self.config.codes, key.at(step=scale, purpose="codebook"))
            tokens.append(nearest(vectors, self.codebooks[scale]).view(len(pictures), side**2))
            shown = self._added(shown, scale, tokens[-1])
        return tokens, shown

    def _shown(self, tokens: Sequence[Tensor]) -> Tensor:
        """(B, C, side, side) of the finest scale."""
        side = self.config.sides[-1]
        shown = self.codebooks.new_zeros(len(tokens[0]), self.codebooks.shape[-1], side, side)
        for scale, codes in enumerate(tokens):
            shown = self._added(shown, scale, codes)
        return shown

    def _added(self, shown: Tensor, scale: int, codes: Tensor) -> Tensor:
        side = self.config.sides[scale]
        patches = self.codebooks[scale][codes].transpose(1, 2).unflatten(2, (side, side))
        grown = interpolate(patches, shown.shape[2:], mode="bicubic") if side < shown.shape[2] else patches
        return shown + grown if self.config.residual else grown

    def _asked(self, texts: Sequence[str]) -> Tensor:
        """(B, width) the sum of a text's words."""
        rows = []
        for text in texts:
            words = split(text)
            if strange := next((word for word in words if word not in self._known), None):
                raise DataError(f"text {text!r}: {unknown('word', strange, self._known)}")
            rows.append(
                self.words(torch.tensor([self._known[w] for w in words], dtype=torch.long).to(self.device)).sum(0)
            )
        return torch.stack(rows)


def split(text: str) -> list[str]:
    """The words of a text, each once, in alphabetical order."""
    return sorted(set(re.findall(r"\w+", text.lower())))


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N, C), (K, C) -> (N,) the place of the nearest entry."""
    return torch.cat([torch.cdist(part, codebook).argmin(1) for part in vectors.split(AT_ONCE)])


def centres(vectors: Tensor, count: int, key: Key) -> Tensor:
    """(N, C) -> (count, C) by k-means over different vectors, so that a plain background is one among them. Where there
    are fewer than `count`, these are the first entries and the rest repeat the last."""
    different = torch.unique((vectors * 255).round(), dim=0) / 255
    order = torch.randperm(len(different), generator=key.generator()).to(vectors.device)
    found = different[order[:count]].clone()
    for _ in range(ROUNDS if len(different) > count else 0):
        owner = nearest(different, found)
        sums = torch.zeros_like(found).index_add_(0, owner, different)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        found = torch.where(sizes > 0, sums / sizes.clamp(min=1), found)
    return torch.cat([found, found[-1:].expand(count - len(found), -1)])
