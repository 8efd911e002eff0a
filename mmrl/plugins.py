"""Names that point outside the package: `path/to/file.py:name`, `package.module:name`, and installed plugins.

Stage functions, rollout strategies, environments, rewards and policies may all be named so. What is loaded by file is
ordinary Python of the user's own; nothing is fetched. A package that is installed may register what it brings under
the entry point group `mmrl.plugins`: the modules it names are imported before a name is looked up.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrl.errors import ConfigError, unknown

GROUP = "mmrl.plugins"
IN_A_FILE = re.compile(r"(?P<place>.+\.py):(?P<name>\w+)")
_entered = False


def is_reference(name: str) -> bool:
    """Whether `name` points outside the package."""
    return ":" in name


def load(reference: str, what: str) -> Any:
    """What `path/to/file.py:name` or `package.module:name` names; `what` is it for, in errors."""
    place, _, attribute = reference.rpartition(":")
    module = load_file(Path(place), what) if place.endswith(".py") else load_module(place, what)
    if not hasattr(module, attribute):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{what} {reference!r}: {place}: {unknown('name', attribute, offered)}")
    return getattr(module, attribute)


def load_file(path: Path, what: str) -> ModuleType:
    """The module in a file, run once; it can import its neighbours."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"{what}: no such file: {path}")
    name = "mmrl_plugin_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise ConfigError(f"{what}: {path} cannot be imported: {type(error).__name__}: {error}") from error
        raise
    return module


def load_module(place: str, what: str) -> ModuleType:
    """A module by its dotted name, from the current folder too."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does; a console script does not
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise ConfigError(f"{what}: no module named {error.name!r} on the import path") from None
        raise


def enter() -> None:
    """Import the modules that installed packages name under `mmrl.plugins`, once."""
    global _entered
    if _entered:
        return
    _entered = True
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"plugin {point.name!r} ({point.value}) cannot be imported: {error}") from error


def reference_of(function: Any) -> str | None:
    """How a function can be named in a configuration; None where only this process knows it."""
    name, code = getattr(function, "__qualname__", ""), getattr(function, "__code__", None)
    if not name.isidentifier() or code is None or not Path(code.co_filename).is_file():
        return None
    return f"{Path(code.co_filename).resolve()}:{name}"


def absolute(values: Any, folders: list[Path]) -> Any:
    """`values` in which every `file.py:name` that stands in one of `folders` is named by its whole path, so that a
    run can be continued from anywhere. Mappings and lists are gone through."""
    if isinstance(values, Mapping):
        return {k: absolute(v, folders) for k, v in values.items()}
    if isinstance(values, list):
        return [absolute(v, folders) for v in values]
    found = IN_A_FILE.fullmatch(values) if isinstance(values, str) else None
    if found is None:
        return values
    for folder in folders:
        path = folder / Path(found["place"]).expanduser()
        if path.is_file():
            return f"{path.resolve()}:{found['name']}"
    return values
