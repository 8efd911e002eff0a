"""Packages that only some rewards need: one clear line where one is missing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from mmrl.errors import RewardError


def needed(module: str, reward: str, install: str, why: str = "") -> ModuleType:
    """The module; RewardError that says how to have it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        raise RewardError(
            f"reward {reward!r} needs the package {missing!r}, which {sys.executable} lacks: pip install {install}"
            + (f"; {why}" if why else "")
        ) from None


def loaded(make: Any, reward: str, what: str) -> Any:
    """What `make()` loads; RewardError where the weights cannot be had."""
    try:
        return make()
    except RewardError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise RewardError(f"reward {reward!r}: {what} cannot be loaded: {first}") from error


def pictures_only(completions: Any, reward: str) -> None:
    """RewardError for anything but PIL images."""
    for completion in completions:
        if not hasattr(completion, "convert"):
            raise RewardError(f"{reward} reads PIL images, got a {type(completion).__name__}")


def device_of(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")
