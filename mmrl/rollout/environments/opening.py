"""Environments by name: ours, or yours from a file or module, as rewards are named.

environment: zoom
environment: {name: zoom, side: 640, max_turns: 3}
environment: {name: "my_env.py:MyEnv", patience: 2}
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrl.errors import ConfigError, unknown
from mmrl.rollout.environments.base import Environment, turns_of
from mmrl.stages import Bound, registered, stage


def environment_of(choice: str | Mapping[str, Any]) -> Bound:
    """The environment a configuration names, made with its parameters: `bound.state`."""
    given = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = str(given.get("name", ""))
    if ":" in name:
        given["name"] = _registered(name)
    bound = Bound.of("environment", given)
    turns_of(bound.state)
    return bound


def _registered(name: str) -> str:
    """The name under which the class at `file.py:Class` or `package.module:Class` stands in the registry."""
    place, _, attribute = name.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place, name)
    kind = getattr(module, attribute, None)
    if kind is None:
        offered = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError(f"{place}: {unknown('class', attribute, offered)}")
    if not (inspect.isclass(kind) and callable(getattr(kind, "step", None)) and callable(getattr(kind, "reset", None))):
        raise ConfigError(
            f"environment {name!r}: expected a class with `reset(prompt)` and `step(state, output)`, such as a "
            f"subclass of mmrl.rollout.environments.base.Environment, got {kind!r:.80}"
        )
    known = next((f.name for f in registered("environment") if f.function is kind), None)
    if known is None:
        kind.columns, kind.max_turns = getattr(kind, "columns", {}), getattr(kind, "max_turns", Environment.max_turns)
        stage("environment", name, paper="-", formula="-", confidence="ours")(kind)
    return known or name


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no such environment file: {path}")
    name = "mmrl_environment_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: {type(error).__name__} while it was read: {error}") from error
    return module


def _load_module(place: str, name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does; a console script does not
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(f"environment {name!r}: {error}") from None
