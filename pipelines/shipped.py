"""Plans of commands that are no configuration of a run: a file, or one that ships."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError, unknown
from mmrl.settings import read_yaml_file


def read_plan(source: str | Path, folder: str, kind: str) -> tuple[dict[str, Any], Path]:
    """What a plan says, and where it stands.

    source  a file, or the name of a plan in `configs/FOLDER`
    kind    what such a plan is called where its name is unknown
    """
    path = Path(source)
    if not path.is_file():
        there = Path(str(resources.files("mmrl.configs") / folder))
        shipped = sorted(p.stem for p in there.glob("*.yaml"))
        if str(source) not in shipped:
            raise ConfigError(f"{source}: no such file, and {unknown(kind, str(source), shipped)}")
        path = there / f"{source}.yaml"
    values = read_yaml_file(path) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got a {type(values).__name__}")
    return values, path
