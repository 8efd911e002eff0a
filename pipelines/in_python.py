"""Errors that name keys as the command line writes them, with the same said in Python beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmrl.errors import MMRLError
from mmrl.pipelines.config import RunConfig, override

KEY = re.compile(r"(?<![\w./])(\w+(?:\.\w+)+)(?:=([\w./:-]+))?")
RESUME = re.compile(r"--resume ([^\s`,;]+)")
CALLED = ("rewards",)
"""Sections that `train` takes in a form of their own."""


@contextmanager
def in_python() -> Iterator[None]:
    """An error of ours met in this block gets a note that says its keys and flags in Python."""
    try:
        yield
    except MMRLError as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        if (note := python_of(said)) is not None:
            error.add_note(note)
        raise


COLUMNS = "data.columns."


def python_of(text: str) -> str | None:
    """How the first `section.key=value` and the first `--resume RUN` of a message are written in Python; None where
    there is neither."""
    said = [f"--resume is train(..., resume={json.dumps(found[1])})" for found in RESUME.finditer(text)][:1]
    keys = dict.fromkeys((found[1], found[2]) for found in KEY.finditer(text) if _is_key(found[1]))
    columns = [(key.removeprefix(COLUMNS), value) for key, value in keys if key.startswith(COLUMNS) and value]
    if len(columns) > 1:  # a row's names are given together
        said += [f"data.columns is train(..., data={json.dumps({'columns': dict(columns)})})"]
    else:
        said += [_keyword(key, value) for key, value in keys][:1]
    return f"in Python, {'; '.join(said)}" if said else None


def _is_key(dotted: str) -> bool:
    section = dotted.partition(".")[0]
    return section in RunConfig.model_fields and section not in CALLED


def _keyword(dotted: str, value: str | None) -> str:
    section, *keys = dotted.split(".")
    written = "..." if value is None or not value.strip(".") else repr(override(f"{dotted}={value}")[1])
    if section == "policy":
        section, *keys = keys
    for key in reversed(keys):
        written = f"{{{json.dumps(key)}: {written}}}"
    call = "from_pretrained" if dotted.startswith("policy.") else "train"
    return f"{dotted} is {call}(..., {section}={written})"
