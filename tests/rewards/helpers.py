"""Prompts for rewards, and the tables of answers in `cases/`."""

import json
from pathlib import Path
from typing import Any

from mmrl.record import Prompt

CASES = Path(__file__).parent / "cases"
USER_FILE = Path(__file__).parent / "user_rewards.py"


def user(function: str, **spec) -> dict:
    return {"name": f"{USER_FILE}:{function}", **spec}


def prompts(count: int = 1, text: str = "What is it?", **columns) -> list[Prompt]:
    """`count` prompts; a list of `count` values gives each prompt its own, anything else goes to all."""
    rows = []
    for i in range(count):
        own = {k: v[i] if isinstance(v, list) and len(v) == count else v for k, v in columns.items()}
        rows.append(Prompt(f"p{i}", [{"role": "user", "content": text}], columns=own))
    return rows


def cases(name: str) -> list[list[Any]]:
    """The rows of `cases/NAME.jsonl`; lines that are texts are headings."""
    lines = (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if isinstance(row, list)]
