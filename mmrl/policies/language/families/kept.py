"""What was found about a model, kept on disk: the self-check takes seconds to minutes, its answer does not change.

The key is everything the answer depends on except the weights' values: configuration, processor, chat template, names
and shapes of the weights, attention, device type, and the versions of torch, transformers and mmrl.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmrl.policies.language.families import check, whole
from mmrl.policies.language.families.base import Capabilities
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.families.prompts import probes

T = TypeVar("T")


def capabilities_of(model: Any, family: Family, attention: str, *, video: bool) -> Capabilities:
    """Found now, or when the same model was loaded before. With several ranks, the first one looks."""

    def look() -> Capabilities:
        asked = probes(family, video=video)
        found = _once(
            key(model, family, attention, video), lambda: check.find(model, family, asked, attention).as_dict()
        )
        return Capabilities(**found)

    return _by_the_first_rank(look)


def checked_below_float32(module: Any, family: Family, attention: str, *, video: bool) -> None:
    """Take back what differs too much in the precision that the whole model runs in; in float32 nothing can."""
    dtype = module.autocast or module.core.dtype
    if dtype == torch.float32:
        return

    def look() -> dict[str, float]:
        asked = probes(family, video=video)
        name = f"{key(module.core, family, attention, video)}.{str(dtype)[6:]}"
        return _once(name, lambda: whole.mean_gaps(module, family, asked))

    whole.closed_by(_by_the_first_rank(look), family, dtype)


def _by_the_first_rank(look: Callable[[], T]) -> T:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return look()
    told: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            told = [look()]
        except Exception as error:  # the other ranks wait for an answer
            told = [error]
    torch.distributed.broadcast_object_list(told, src=0)
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]


def _once(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` says, or said under this name before."""
    path = folder() / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(made, indent=1))
    os.replace(scratch, path)
    return made


def folder() -> Path:
    """`families` in `$MMRL_CACHE`, or in `mmrl` in the cache folder of the platform."""
    if own := os.environ.get("MMRL_CACHE"):
        return Path(own).expanduser() / "families"
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "mmrl" / "families"


def key(model: Any, family: Family, attention: str, video: bool) -> str:
    import transformers

    import mmrl

    processor = family.processor
    parts = {
        "config": model.config.to_dict(),
        "processor": _settings(processor),
        "images": _settings(getattr(processor, "image_processor", None)),
        "videos": _settings(getattr(processor, "video_processor", None)),
        "template": [processor.chat_template, getattr(processor.tokenizer, "chat_template", None)],
        "tokens": [sorted(processor.tokenizer.get_added_vocab().items()), processor.tokenizer("a")["input_ids"]],
        "weights": [(name, list(p.shape), str(p.dtype)) for name, p in model.named_parameters()],
        "run": [type(family).__qualname__, attention, video, model.device.type],
        "versions": [torch.__version__, transformers.__version__, mmrl.__version__],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _settings(part: Any) -> Any:
    """Of a processor or a part of it; one that cannot be written (a font that is not there) by its attributes."""
    if part is None or not hasattr(part, "to_dict"):
        return None
    try:
        return part.to_dict()
    except ValueError:
        return {name: str(value) for name, value in vars(part).items() if isinstance(value, (str, int, float, dict))}
