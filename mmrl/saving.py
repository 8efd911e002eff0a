"""Plain files for records: tensors as safetensors, texts and names as JSON beside them. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def write(path: str | Path, values: Mapping[str, Any], texts: Mapping[str, Any]) -> None:
    """The tensors in `values` to `path`.safetensors, `texts` to `path`.json.

    values  tensors; mappings of tensors, stored as `name/key`; lists of such mappings or None, stored as
            `name#row/key`. What is none of these is left out
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            tensors |= {f"{name}/{key}": tensor for key, tensor in value.items()}
        elif isinstance(value, list):
            parts = [(row, part) for row, part in enumerate(value) if isinstance(part, Mapping)]
            tensors |= {f"{name}#{row}/{key}": tensor for row, part in parts for key, tensor in part.items()}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(texts, default=str))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write` wrote: values, and texts. A list comes back as `{row: {key: tensor}}`."""
    from safetensors.torch import load_file

    path = Path(path)
    values: dict[str, Any] = {}
    for name, tensor in load_file(path.with_suffix(".safetensors")).items():
        owner, _, key = name.partition("/")
        listed, _, row = owner.partition("#")
        if row:
            values.setdefault(listed, {}).setdefault(int(row), {})[key] = tensor
        elif key:
            values.setdefault(owner, {})[key] = tensor
        else:
            values[owner] = tensor
    return values, json.loads(path.with_suffix(".json").read_text())
