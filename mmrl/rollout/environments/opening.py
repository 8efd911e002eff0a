"""Environments by name: ours, or yours from a file or module.

environment: zoom
environment: {name: zoom, side: 640, max_turns: 3}
environment: {name: "my_env.py:MyEnv", patience: 2}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmrl import plugins
from mmrl.columns import COLUMNS
from mmrl.errors import ConfigError, unknown
from mmrl.rollout.environments.base import Environment, turns_of
from mmrl.stages import Bound, registered, stage


def environment_of(choice: str | Mapping[str, Any]) -> Bound:
    """The environment a configuration names, made with its parameters: `bound.state`."""
    given = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = str(given.get("name", ""))
    if plugins.is_reference(name):
        _register(name)
    bound = Bound.of("environment", given)
    turns_of(bound.state)
    for column in bound.state.turn_columns:
        if column not in COLUMNS or not COLUMNS[column].per_action:
            offered = [name for name, known in COLUMNS.items() if known.per_action]
            raise ConfigError(f"environment {name!r}: turn_columns: {unknown('column (B, T)', column, offered)}")
    return bound


def _register(name: str) -> None:
    """A class of yours needs no decorator."""
    kind = plugins.load(name, "environment")
    if not (inspect.isclass(kind) and callable(getattr(kind, "step", None)) and callable(getattr(kind, "reset", None))):
        raise ConfigError(
            f"environment {name!r}: expected a class with `reset(prompt)` and `step(state, output)`, such as a "
            f"subclass of mmrl.rollout.environments.base.Environment, got {kind!r:.80}"
        )
    if not any(known.function is kind for known in registered("environment")):
        for attribute in ("columns", "turn_columns", "max_turns"):
            if not hasattr(kind, attribute):
                setattr(kind, attribute, getattr(Environment, attribute))
        stage("environment", name, paper="-", formula="-", confidence="ours")(kind)
