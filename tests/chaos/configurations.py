"""Configurations that someone might write: every key of every shipped one, with values that do not belong there.

A mutation must run through `read_config`, `check_config` and `plan`, or be refused in one line that names the key.
"""

from __future__ import annotations

import copy
import datetime
import math
import random
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from mmrl.errors import MMRLError, got
from mmrl.pipelines.config import read_config, set_dotted
from mmrl.pipelines.plan import plan_run
from mmrl.pipelines.run import check_config
from mmrl.policies.registry import MODALITIES
from tests.chaos.trials import Tally

CONFIGS = Path(__file__).parents[2] / "configs"
LONGEST = 600
"""Characters of a message: what was expected may be a list of names, and no more."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**30, -(10**30), 0.5, -0.5, 1e300, math.inf, -math.inf, math.nan, 10**5000,
    "", " ", "nope", "grpo", "accuracy", "0", "1e400", "nan", "a.b", "x.py:f", "{", "{}", "{0}", "{modality.x}", "[",
    "asset:nope", "world:nope", "/proc/x", "/dev/null", "../..", "é" * 3, "\x1b[31m", "\ud800", "x" * 5000,
    [], [None], [1], [1, 1], [1, 1, 1], ["nope"], [["grpo"]], [{}], [{"name": "nope"}], [{"name": None}],
    {}, {"name": "nope"}, {"name": None}, {"name": 3}, {"name": ["grpo"]}, {"nope": 1}, {"": 1}, {None: 1}, {1: 2},
    {"name": "grpo", "nope": 1}, {"a": {"b": {"c": 1}}}, datetime.date(2026, 1, 1), b"bytes", {1, 2},
)  # fmt: skip

WRITABLE = tuple(v for v in VALUES if v != 10**5000 and v != "\ud800")
"""What can be written into a YAML file."""


def shipped() -> list[tuple[str, str]]:
    """(modality, name) of every shipped configuration."""
    found = sorted(p for p in CONFIGS.glob("*/*.yaml") if p.parent.name in MODALITIES)
    return [(p.parent.name, p.stem) for p in found]


def keys_of(values: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted path of a configuration, sections and entries of lists included."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path
        yield from keys_of(value, path)


def mutations(modality: str, name: str, count: int, seed: int) -> Iterator[tuple[str, Any]]:
    """`count` (key, value) pairs: every key at least once, then at random."""
    draw = random.Random(f"{seed} {modality} {name}")
    config = read_config(name, (), modality)
    keys = [
        *keys_of(config.model_dump(mode="json")),
        *(f"policy.{k}" for k in type(config.policy_settings()).model_fields),
    ]
    keys = list(dict.fromkeys(keys))
    draw.shuffle(keys)
    for i in range(count):
        key = keys[i % len(keys)]
        if draw.random() < 0.1:
            key = draw.choice(
                (key + "x", key[:-1] or "x", key + ".x", key + ".0", key + ".name", key + "..x", "." + key)
            )
        yield key, draw.choice(VALUES)


def outcome(modality: str, name: str, key: str, value: Any) -> str:
    """ "" where the mutation runs or is refused as it should be; else what is wrong with it."""
    try:
        values = read_config(name, (), modality).model_dump(mode="json")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            set_dotted(values, key, value)
            config = read_config(values, (), modality)
            check_config(config)
            plan_run(config)
    except MMRLError as error:
        return _vague(str(error), key)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def mutate(count: int, seed: int = 0) -> list[Tally]:
    """`count` mutations of each shipped configuration."""
    tally = Tally("a key of a shipped configuration with a value that does not belong there")
    for modality, name in shipped():
        for key, value in mutations(modality, name, count, seed):
            problem = outcome(modality, name, key, value)
            tally.count(problem and f"{modality} {name}: {key}={got(value)}: {problem}")
    return [tally]


def mutate_recipes(folder: Path, count: int, seed: int = 0) -> list[Tally]:
    """`count` mutations of each recipe, as somebody who copied its file would write them."""
    tally = Tally("a key of a recipe, copied into a file, with a value that does not belong there")
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in sorted((CONFIGS / "recipes").glob("*.yaml")):
        values = yaml.safe_load(recipe.read_text())
        draw = random.Random(f"{seed} {recipe.stem}")
        keys = list(keys_of(values))
        for key in draw.sample(keys, min(count, len(keys))):
            value = draw.choice(WRITABLE)
            problem = _recipe_outcome(folder / recipe.name, values, key, value)
            tally.count(problem and f"{recipe.stem}: {key}={got(value)}: {problem}")
    return [tally]


def _recipe_outcome(path: Path, values: dict[str, Any], key: str, value: Any) -> str:
    modality = (values.get("modalities") or ["vlm"])[0]
    asis = _refusal(path, values, modality)  # some recipes leave something to the user
    changed = copy.deepcopy(values)
    set_dotted(changed, key, value)
    try:
        message = _refusal(path, changed, modality)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return _vague(message, key) if message and message != asis else ""


def _refusal(path: Path, values: dict[str, Any], modality: str) -> str:
    """Why a demo with this recipe is refused, "" where it is planned."""
    path.write_text(yaml.safe_dump(values))
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            config = read_config("demo", [f"recipe={path}"], modality)
            check_config(config)
            plan_run(config)
    except MMRLError as error:
        return str(error)
    return ""


def _vague(message: str, key: str) -> str:
    if "\n" in message:
        return f"several lines: {message!r}"
    if len(message) > LONGEST:
        return f"{len(message)} characters: {message[:200]!r}"
    words = [w for w in key.replace("..", ".").split(".") if w and not w.isdigit()]
    named = any(w in message for w in words) or not words
    named = named or any(w.replace("_", " ").rstrip("s") in message for w in words)
    return "" if named else f"does not name {key!r}: {message!r}"
