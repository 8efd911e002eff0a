"""What the comparison with a pipeline found, kept on disk: it takes seconds to minutes, its answer does not change.

The key is everything the answer depends on except the weights' values and the prompt's words: the configurations of all
components, names and shapes of the weights, what is asked, sizes of condition images, device, the dtype of products
under `policy.autocast`, the code of the family, and the versions of torch, diffusers, transformers and mmrl.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.families.check import Verdict, checked, products_dtype
from mmrl.policies.generation.families.swap import Swapped


def verdict_of(
    generator: Generator, prompt: str, media: Sequence[Any], modules: Mapping[str, Any]
) -> tuple[Generator, Verdict]:
    """Found now, or when the same pipeline was asked the same way before. With several ranks, the first one looks."""
    path = folder() / f"{key(generator, media, modules)}.json"
    known = _of_the_first(path)
    if known is not None:
        verdict = Verdict(**known | {"times": tuple(known["times"])})
        swapped = verdict.path == "swap" and not isinstance(generator, Swapped)
        return Swapped(generator.pipeline, generator.asked, like=generator) if swapped else generator, verdict
    found = checked(generator, prompt, media, modules)
    if not _ranks() or torch.distributed.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(asdict(found[1]), indent=1))
        os.replace(scratch, path)
    return found


def folder() -> Path:
    """`generators` in `$MMRL_CACHE`, or in `mmrl` in the cache folder of the platform."""
    if own := os.environ.get("MMRL_CACHE"):
        return Path(own).expanduser() / "generators"
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "mmrl" / "generators"


def key(generator: Generator, media: Sequence[Any], modules: Mapping[str, Any]) -> str:
    import diffusers
    import transformers

    import mmrl

    pipeline = generator.pipeline
    parts = {
        "pipeline": [type(pipeline).__name__, dict(pipeline.config)],
        "components": {name: _about(part) for name, part in sorted(pipeline.components.items())},
        "trained": {name: _weights(module) for name, module in sorted(modules.items())},
        "asked": [repr(generator.asked), [image.size for image in media], str(_device(modules))],
        "products": str(products_dtype(modules)),
        "family": _code(type(generator)),
        "versions": [torch.__version__, diffusers.__version__, transformers.__version__, mmrl.__version__],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _about(part: Any) -> Any:
    """Class, configuration, and shapes of the weights where there are some."""
    config = getattr(part, "config", None)
    told = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    if hasattr(part, "chat_template"):
        told["template"] = part.chat_template
    return [type(part).__name__, told, _weights(part) if isinstance(part, torch.nn.Module) else None]


def _weights(module: torch.nn.Module) -> list[Any]:
    return [(name, list(p.shape), str(p.dtype)) for name, p in module.named_parameters()]


def _device(modules: Mapping[str, Any]) -> str:
    return next(p.device.type for module in modules.values() for p in module.parameters())


def _code(kind: type) -> str:
    """Of everything a family says and inherits: one that was changed is compared again."""
    said = hashlib.sha256()
    for each in kind.__mro__[:-1]:
        for name, member in sorted(vars(each).items()):
            function = getattr(member, "__func__", getattr(member, "fget", member))
            code = getattr(function, "__code__", None)
            said.update(repr((name, _plain(code) if code else _value(member))).encode())
    return said.hexdigest()


def _value(member: Any) -> Any:
    return member if isinstance(member, str | int | float | tuple | None) else type(member).__name__


def _plain(code: CodeType) -> Any:
    consts = [_plain(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return code.co_code.hex(), code.co_names, consts


def _ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _of_the_first(path: Path) -> dict[str, Any] | None:
    """What the first rank reads, so that all compare or none does."""
    told: list[Any] = [None]
    if not _ranks() or torch.distributed.get_rank() == 0:
        told = [json.loads(path.read_text()) if path.is_file() else None]
    if _ranks():
        torch.distributed.broadcast_object_list(told, src=0)
    return told[0]
