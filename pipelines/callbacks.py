"""Code of the user's own that a run tells what it does: `callbacks: [my_callbacks.py:Stopper]`.

An object, made without arguments or with those of {name: ..., parameter: ...}, or in Python the object itself, with
any of

    begin(config)              the resolved configuration, before the first step
    step(step, metrics)        after each step
    rollouts(step, folder)     where rollouts of a step, or of an evaluation, were written
    end(result)                what the run came to

It is called on the first rank alone. What it raises ends the run, as an error of its own: nothing is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmrl import plugins
from mmrl.errors import ConfigError

EVENTS = ("begin", "step", "rollouts", "end")


class Callbacks:
    """Several, in their order."""

    def __init__(self, specs: Iterable[Any]):
        self.listeners = [_made(spec) for spec in specs]

    def tell(self, event: str, *what: Any) -> None:
        for listener in self.listeners:
            if (hear := getattr(listener, event, None)) is not None:
                hear(*what)

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        self.tell("step", step, metrics)

    def rollouts(self, step: int, folder: Path) -> None:
        self.tell("rollouts", step, folder)


def _made(spec: Any) -> Any:
    """The listener of a configuration's entry; an object of the user's own is one already."""
    if not isinstance(spec, (str, Mapping)):
        made = spec() if isinstance(spec, type) else spec
        return _listening(made, type(made).__name__)
    name, options = (spec, {}) if isinstance(spec, str) else (str(spec.get("name", "")), dict(spec))
    options.pop("name", None)
    if not plugins.is_reference(name):
        raise ConfigError(f"callbacks: {name!r}: expected path/to/file.py:Class or package.module:Class")
    kind = plugins.load(name, "callbacks")
    try:
        made = kind(**options)
    except TypeError as error:
        raise ConfigError(f"callbacks: {name}: {error}") from None
    return _listening(made, name)


def _listening(made: Any, name: str) -> Any:
    """ConfigError for an object that would never be called."""
    if not any(callable(getattr(made, event, None)) for event in EVENTS):
        raise ConfigError(f"callbacks: {name} has none of {', '.join(EVENTS)}: it would never be called")
    return made
