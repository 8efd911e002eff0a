"""Rewards by name: ours are registered by a decorator, yours are named by file, module or dotted path.

    @reward("accuracy", success=True)
    def accuracy(completions, solution, task, *, decimals=2):
        return [...]                              one number, None or dictionary per completion

A reward takes equally long lists: `prompts`, `completions`, and whichever dataset columns it names. A
parameter without default is a column every row must have; one with a default is a column rows may have;
`**columns` asks for all of them; a keyword-only parameter with a default is an option, set in the
configuration. Nothing here imports torch: workers that score text start in a fraction of a second.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import plugins
from mmrl.errors import ConfigError, RewardError, unknown
from mmrl.rewards.presets import PRESETS

ROOMS = (
    "accuracy", "choice", "choreography", "clip", "edited", "exercises", "expressions", "format", "geneval",
    "grounding", "image", "label_free", "numeric", "pixels", "preservation", "steadiness", "structure", "temporal",
    "text", "wording",
)  # fmt: skip
FOLDERS = ("kinds", "papers", "models")
"""Each file in them registers its own: a new kind of answer changes no other file."""
INPUTS = ("prompts", "completions")


@dataclass(frozen=True)
class Reward:
    """A reward function and what the panel must know of it.

    success   its value says whether an output is right: read by pass@k and difficulty statistics
    isolated  runs in a worker process with a time limit; models that share the trainer's device do not
    check     `check(row, **options)` raises RewardError for a dataset row it could never score
    method    the published method it is, with its paper and formula, as in `mmrl methods`; most are none
    """

    name: str
    function: Callable
    success: bool = False
    isolated: bool = True
    check: Callable[..., None] | None = None
    method: str = ""
    paper: str = ""
    formula: str = ""
    confidence: str = "verified"

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n")[0]


@dataclass(frozen=True)
class Columns:
    """The dataset columns a reward reads: by name, by name if every row has them, or all."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    everything: bool = False


_REGISTRY: dict[str, Reward] = {}
_loaded = False


def reward(
    name: str,
    *,
    success: bool = False,
    isolated: bool = True,
    check: Callable[..., None] | None = None,
    method: str | None = None,
    paper: str = "",
    formula: str = "",
    confidence: str = "verified",
) -> Callable[[Callable], Callable]:
    """Register a reward function under `name`; see `Reward` for the flags."""

    def register(function: Callable) -> Callable:
        held = _REGISTRY.get(name)
        if held and _place(held.function) != _place(function):
            raise RewardError(f"reward {name!r} is registered twice: {_place(held.function)} and {_place(function)}")
        published = (method or name) if paper else ""
        _REGISTRY[name] = Reward(name, function, success, isolated, check, published, paper, formula, confidence)
        return function

    return register


def checks(read: Callable[..., Any], *context: str) -> Callable[..., None]:
    """The `check` of a reward whose truth is read by `read(solution, **context)`: what it raises is told of `solution`.

    context  columns that `read` takes besides, where a row has them
    """

    def check(row: Mapping[str, Any], **options: Any) -> None:
        read(row.get("solution"), **{name: row[name] for name in context if row.get(name) is not None})

    return check


def registered() -> dict[str, Reward]:
    """All rewards of this package, and those registered by modules imported so far."""
    global _loaded
    if not _loaded:
        for room in ROOMS:
            importlib.import_module(f"mmrl.rewards.{room}")
        for folder in FOLDERS:
            place = importlib.import_module(f"mmrl.rewards.{folder}")
            for each in pkgutil.iter_modules(place.__path__):
                importlib.import_module(f"{place.__name__}.{each.name}")
        _loaded = True
    return dict(_REGISTRY)


def resolve(name: str) -> Reward:
    """The reward of a registered name, `path/to/file.py:function`, `package.module:function` or a dotted name."""
    if ":" not in name and "." not in name:
        alone = _alone(name)
        if alone is not None:
            return alone
        known = registered()
        if name not in known:
            raise RewardError(unknown("reward", name, [*known, *PRESETS]) + ". Yours: path/to/file.py:function")
        return known[name]
    place, attribute = name.rpartition(":")[::2] if ":" in name else name.rpartition(".")[::2]
    try:
        file, what = place.endswith(".py"), f"reward {name!r}"
        module = plugins.load_file(Path(place), what) if file else plugins.load_module(place, what)
    except ConfigError as error:
        raise RewardError(str(error)) from None
    function = getattr(module, attribute, None)
    if function is None:
        offered = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(f"{place}: {unknown('function', attribute, offered)}")
    if inspect.isclass(function) or not callable(function):
        raise RewardError(f"reward {name!r} is a {type(function).__name__}; expected a function")
    return declared(function) or Reward(attribute, function)


def _alone(name: str) -> Reward | None:
    """The reward of a file of its own name, and no other: another interpreter may lack what they import."""
    if _loaded or importlib.util.find_spec(f"mmrl.rewards.models.{name}") is None:
        return _REGISTRY.get(name)
    importlib.import_module(f"mmrl.rewards.models.{name}")
    return _REGISTRY.get(name)


def declared(function: Callable) -> Reward | None:
    """The reward this function was registered as, if it was."""
    return next((each for each in _REGISTRY.values() if each.function is function), None)


def columns_of(function: Callable, options: Mapping[str, Any], name: str) -> Columns:
    """Which columns `function` reads once `options` are given; an option it does not have is an error."""
    parameters = inspect.signature(function).parameters.values()
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in INPUTS]
    if not everything:
        for option in options:
            if option not in (p.name for p in named):
                raise RewardError(f"reward {name!r}: {unknown('option', option, [p.name for p in named])}")
    free = [p for p in named if p.name not in options]
    required = tuple(p.name for p in free if p.default is p.empty)
    optional = tuple(p.name for p in free if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY)
    return Columns(required, optional, everything)


def takes(function: Callable, parameter: str) -> bool:
    """Whether `function` can be called with this keyword."""
    parameters = inspect.signature(function).parameters
    return parameter in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def score_of(said: Any) -> float | None:
    """The number that a reward said of an output, whichever form it has; None where it is unscored."""
    if isinstance(said, Mapping):
        said = next((said[key] for key in ("score", "overall") if key in said), None)
    return None if said is None or math.isnan(said) else float(said)


def _place(function: Callable) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{function.__qualname__}" if code else repr(function)
