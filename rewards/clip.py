"""CLIP score: cosine of an image and its caption, by any checkpoint open_clip can load.

    {name: clip_score}                                                    the shipped tiny CLIP of the toy world
    {name: clip_score, options: {model: ViT-L-14, pretrained: openai}}    an open_clip name, tag or weights file
    {name: clip_score, options: {model: local-dir:path/to/folder}}        a folder with open_clip_config.json

Runs in the trainer's process, on its device, without gradient. CLIPScore (Hessel et al. 2021) is 2.5 max(cosine, 0);
the cosine itself is returned, since a factor changes nothing in a group and a floor hides how wrong an image is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.registry import reward

TINY = "tiny"


@dataclass(frozen=True)
class Scorer:
    """A loaded model with its image transform and tokenizer."""

    model: Any
    transform: Any
    tokenizer: Any
    device: str

    def cosines(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """One cosine per (image, text) pair."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.transform(image.convert("RGB")) for image in images]).to(self.device)
            image = self.model.encode_image(pixels, normalize=True)
            text = self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
            return (image * text).sum(-1).float().tolist()

    def text_cosines(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """One cosine per pair of texts."""
        import torch

        with torch.inference_mode():
            a, b = (
                self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
                for texts in (first, second)
            )
            return (a * b).sum(-1).float().tolist()


def tiny_folder() -> Path:
    """Where the shipped tiny CLIP lies, a folder that plain open_clip loads as `local-dir:...`."""
    return Path(str(files("mmrl"))) / "data" / "assets" / "tiny_clip"


@lru_cache(maxsize=4)
def load_scorer(model: str = TINY, pretrained: str | None = None, device: str | None = None) -> Scorer:
    """Load once per process. Raises RewardError for a name or weights that open_clip does not have."""
    import torch

    import mmrl  # noqa: F401  (torchvision beside a CPU torch needs its operators declared first)

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    import open_clip

    if model == TINY and pretrained is not None:
        raise RewardError(f"the tiny CLIP ships with its weights; for pretrained={pretrained!r} name its `model` too")
    name = f"local-dir:{tiny_folder()}" if model == TINY else model
    if ":" not in name:
        _check_weights(open_clip, name, pretrained)
    try:
        with _said_once():
            loaded, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
            tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise RewardError(
            f"CLIP model {model!r}, pretrained {pretrained!r}: {error}; without a network write the path of a weights "
            f"file as `pretrained`, or `model: {TINY}` for the CLIP that ships"
        ) from error
    return Scorer(loaded.eval().requires_grad_(False), transform, tokenizer, device)


@contextmanager
def _said_once() -> Iterator[None]:
    """open_clip logs to the root logger what it then raises; the error that is raised says it."""

    def no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    root = logging.getLogger()
    root.addFilter(no_error)
    try:
        yield
    finally:
        root.removeFilter(no_error)


def _check_weights(open_clip: Any, name: str, pretrained: str | None) -> None:
    """Without weights open_clip builds a random model, and its scores mean nothing."""
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        raise RewardError(unknown("CLIP model", name, [TINY, *known]) + "; or local-dir:path/to/folder")
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if pretrained is None:
        raise RewardError(f"CLIP model {name!r} needs `pretrained`: a weights file, or one of {', '.join(tags)}")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise RewardError(f"CLIP model {name!r}: {unknown('weights', pretrained, tags)}; nor is it a file")


@reward("clip_score", isolated=False)
def clip_score(
    prompts,
    completions,
    caption=None,
    *,
    model: str = TINY,
    pretrained: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
) -> list[float]:
    """Cosine of each image and its column `caption`, or its prompt where there is none."""
    texts = caption or prompts
    for completion in completions:
        if not hasattr(completion, "convert"):
            raise RewardError(f"clip_score reads PIL images, got a {type(completion).__name__}")
    scorer = load_scorer(model, pretrained, device)
    scores: list[float] = []
    for start in range(0, len(completions), batch_size):
        part = slice(start, start + batch_size)
        scores += scorer.cosines(completions[part], texts[part])
    return scores
