"""The base of every typed configuration section: unknown keys are errors with the nearest match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mmrl import foreign
from mmrl.errors import ConfigError, got, unknown

MOST_VALUES = 1_000_000
"""Of a file, aliases written out."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: PyYAML follows 1.1, in which `1e-4` is text and `off` is false.

    A key given twice is an error: PyYAML drops the first without a word.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not (tag.endswith(":bool") and first in "yYnNoO")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, line) != line:
                raise yaml.YAMLError(f"{key.value!r} is given twice, in lines {seen[key.value]} and {line}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain data, nothing else. Raises yaml.YAMLError."""
    loader = None
    try:
        loader = _Loader(text)
        values = loader.get_single_data()
        _size(values, {})
        return values
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:  # of what a tag asked for
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are once every alias is written out. Raises YAMLError for more than anyone writes, and for
    one that holds itself: whoever walks through them would not come back."""
    if not isinstance(value, dict | list):
        return 1
    if known.get(id(value)) == 0:
        raise yaml.YAMLError("an alias refers to what it stands in")
    if id(value) not in known:
        known[id(value)] = 0
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in inner)
    if known[id(value)] > MOST_VALUES:
        raise yaml.YAMLError(f"aliases stand for more than {MOST_VALUES:,} values")
    return known[id(value)]


def read_yaml_file(path: Path) -> Any:
    """Plain data of a file in UTF-8. Raises ConfigError that names the file, and the line where there is one."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


SHOWN_MISTAKES = 4
Beside = Callable[[], "list[tuple[str, type[Section]]]"]

MOVED = {"max_refills": "`rounds` of the rollout strategy: rollout={name: dynamic_sampling, rounds: 4}"}
"""Keys of earlier versions, and what stands in their place."""


class Section(BaseModel):
    """A typed part of the configuration file. Subclasses list fields, defaults and how to choose them."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key, value in values.items():
                if key not in cls.model_fields:
                    found = f"; {said}" if (said := foreign.answer(key, value)) else ""
                    found += f"; it is now {MOVED[key]}" if key in MOVED else ""
                    said = f"unknown key {key!r}{found}" if found else unknown("key", key, cls.model_fields)
                    raise ConfigError(f"{cls.__name__}: {said}")
        return values


def read_section(kind: type[Section], values: Any, where: str = "", beside: Beside = list) -> Any:
    """Validate, turning pydantic's report into one line: each mistake with its key, what was expected and received.

    beside  further (path, section) whose keys may have been meant; asked only where a key is unknown
    """
    try:
        return kind.model_validate(values)
    except ConfigError as error:  # of a key, by a section that does not know where it stands
        name, _, said = str(error).partition(": ")
        place, key, value = next(_places(kind, values, where, name), (None, "", None))
        theirs = isinstance(value, dict) and bool(foreign.answer(key, value))
        sections = [("", kind), *beside()] if place and key not in MOVED and not theirs else []
        others = [*dict.fromkeys(home for path, section in sections for home in _homes(section, key, path))]
        said = f"unknown key {key!r} here; write {' or '.join(others)}" if others else said
        if not others and place and not foreign.answer(key, value):  # theirs under a section of the same name
            named = foreign.answer(f"{place.rpartition('.')[2]}.{key}", value, below=False)
            said = f"unknown key {key!r}; {named}" if named and key not in MOVED else said
        raise ConfigError(f"{place}: {said}" if place else str(error)) from None
    except ValidationError as error:
        lines = {_line(e, where): None for e in error.errors()}
        shown = [*lines][:SHOWN_MISTAKES]
        more = [f"and {len(lines) - len(shown)} more"] if len(lines) > len(shown) else []
        raise ConfigError("; ".join(shown + more)) from None
    except RecursionError:
        raise ConfigError(f"{where or kind.__name__}: nested too deeply") from None


def _homes(kind: type[Section], key: str, path: str = "") -> list[str]:
    """Where a key that was put into the wrong section belongs, as dotted paths from the top."""
    own = [path + key] if key in kind.model_fields else []
    inner = ((f"{path}{name}.", s) for name, field in kind.model_fields.items() for s in _sections_in(field.annotation))
    return own + [home for below, section in inner for home in _homes(section, key, below)]


def _places(kind: type[Section], values: Any, where: str, name: str) -> Iterator[tuple[str, str, Any]]:
    """Where sections of the kind called `name` stand that have keys it does not know, with the first such key and what
    it was given."""
    if not isinstance(values, dict):
        return
    if kind.__name__ == name and (strange := [str(key) for key in values if key not in kind.model_fields]):
        yield where or name, strange[0], values.get(strange[0])
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        for section in _sections_in(kind.model_fields[key].annotation) if key in kind.model_fields else ():
            for i, entry in enumerate(value if isinstance(value, list) else [value]):
                yield from _places(section, entry, f"{path}.{i}" if isinstance(value, list) else path, name)


def _sections_in(annotation: Any) -> list[type[Section]]:
    """The one kind of section an annotation speaks of, such as `list[RewardSpec]` or `Lora | None`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, Section) else []
    found = [section for part in get_args(annotation) for section in _sections_in(part)]
    return found if len(found) == 1 else []


def _line(mistake: Any, where: str) -> str:
    place = [p for p in mistake["loc"] if p != "[key]"]  # pydantic's word for a key of a mapping
    key = ".".join(str(p) for p in (*([where] if where else []), *place))
    said = str(mistake["msg"]).removeprefix("Value error, ")  # of a validator of ours
    return f"{key}: {said}, got {got(mistake['input'])}"
