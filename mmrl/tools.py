"""Methods that are no stage of a training step: they act on checkpoints, on adapters, or on what is sampled.

    @tool("relex", command="mmrl extrapolate RUN FOLDER --step 500", paper="...", formula="...", confidence="verified")
    def predicted(...):

`mmrl methods NAME` finds them beside the stage functions; most live in `mmrl/weights/`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from mmrl.errors import ConfigError, unknown
from mmrl.policies.registry import OF_ONE_MODEL
from mmrl.stages import CONFIDENCES

_ROOMS = ("mmrl.weights",)
_MODULES = (
    "mmrl.training.bridge",
    "mmrl.training.near_future",
    "mmrl.training.sequence_parallel",
    "mmrl.policies.language.fast.shared_prompt",
    "mmrl.policies.language.fast.cascade",
    "mmrl.policies.generation.residual",
    "mmrl.policies.generation.reuse",
    "mmrl.rollout.preference_pairs",
)
_TOOLS: dict[str, Tool] = {}


@dataclass(frozen=True)
class Tool:
    """A registered tool and what `mmrl methods` says about it.

    command  how it is used, a line of shell or Python
    trains   whether that trains a policy: a run, or a way in which runs compute
    """

    name: str
    function: Callable
    command: str
    paper: str
    formula: str
    confidence: str
    modalities: tuple[str, ...]
    trains: bool = False

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").strip().split("\n")[0]


def tool(
    name: str, *, command: str, paper: str, formula: str, confidence: str, modalities: tuple[str, ...] = OF_ONE_MODEL,
    trains: bool = False,
) -> Callable[[Callable], Callable]:  # fmt: skip
    """Register the function or class that holds a method's formula; `confidence` as of stage functions."""
    if confidence not in CONFIDENCES:
        raise ConfigError(unknown("confidence", confidence, CONFIDENCES))

    def register(function: Callable) -> Callable:
        if name in _TOOLS and _TOOLS[name].function.__qualname__ != function.__qualname__:
            raise ConfigError(f"tool {name!r} is registered twice: by {_TOOLS[name].function} and {function}")
        _TOOLS[name] = Tool(name, function, command, paper, formula, confidence, modalities, trains)
        return function

    return register


def tools() -> dict[str, Tool]:
    """Every tool by its name."""
    for room in _ROOMS:
        for module in pkgutil.iter_modules(importlib.import_module(room).__path__, f"{room}."):
            importlib.import_module(module.name)
    for name in _MODULES:
        importlib.import_module(name)
    return dict(sorted(_TOOLS.items()))
