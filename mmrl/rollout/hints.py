"""What strategies that rescue failed groups share: which groups failed, who stays, and prompts with something added."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.demonstrations import texts_of
from mmrl.rollout.plan import WRITERS, Writer


def worth(batch: Batch | Rollouts) -> Tensor:
    """(B,) the success flag where a verifier gave one, else the reward; NaN where unscored."""
    assert batch.reward is not None, "rows that were scored"
    if batch.success is None:
        return batch.reward
    return torch.where(batch.success.isnan(), batch.reward, batch.success.to(batch.reward))


def failed_groups(batch: Batch, above: float = 0.0) -> list[int]:
    """Groups with rows that count of which none is worth more than `above`; unscored rows say nothing."""
    value = worth(batch)
    scored = batch.counted & ~value.isnan()
    solved = set(batch.group[scored & (value > above)].tolist())
    return sorted(set(batch.group[scored].tolist()) - solved)


def latest(batch: Batch, column: str) -> Tensor:
    """(B,) bool: rows of the highest `column` in their group. Earlier tries stay where a later one brought no row."""
    level = batch[column]
    keep = torch.ones_like(batch.counted)
    for group in torch.unique(batch.group).tolist():
        rows = batch.group == group
        keep[rows] = level[rows] == level[rows].max()
    return keep


def hinter_of(name: str, hinter: str) -> Writer:
    """Who writes a strategy's hints; refuses anybody but the policy and its teacher."""
    if hinter not in WRITERS:
        raise ConfigError(f"{name}: {unknown('hinter', hinter, WRITERS)}")
    return cast(Writer, hinter)


def first_text(prompt: Prompt, column: str) -> str | None:
    """The first text of a prompt's column, None where it has none; anything but texts is refused."""
    texts = texts_of(prompt.columns.get(column) or None, f"prompt {prompt.id!r}: column {column!r}")
    return texts[0] if texts else None


def with_text(prompt: Prompt, text: str, kind: str) -> Prompt:
    """The prompt with `text` behind the last thing the user says. Its id says so; `bare` beside it is the prompt."""
    at = max((i for i, m in enumerate(prompt.messages) if m["role"] == "user"), default=None)
    if at is None:
        raise ConfigError(f"prompt {prompt.id!r}: nothing of it is said by the user, so there is no place for a {kind}")
    content = prompt.messages[at]["content"]
    added: Any = (
        f"{content}\n\n{text}" if isinstance(content, str) else [*content, {"type": "text", "text": f"\n\n{text}"}]
    )
    messages = [dict(m, content=added) if i == at else m for i, m in enumerate(prompt.messages)]
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return replace(prompt, id=f"{prompt.id}+{kind}:{digest}", messages=messages, beside={"bare": prompt})


def filled(template: str, name: str, **texts: str) -> str:
    """`template` with {field} replaced, and nothing else read as a field; refuses a template that lacks one."""
    for field, text in texts.items():
        if "{" + field + "}" not in template:
            raise ConfigError(
                f"{name}: the template {template!r:.60} lacks {{{field}}}; put it where the {field} belongs"
            )
        template = template.replace("{" + field + "}", text)
    return template


def tells(text: str, prompt: Prompt, column: str = "solution") -> bool:
    """Whether a hint holds the answer of the prompt's column, whatever case and spaces it is written in."""
    answer = prompt.columns.get(column)
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        return False
    return holds(text, str(answer))


def holds(text: str, answer: str) -> bool:
    """Whether the answer stands in a text as words of its own, whatever case and spaces: "no" not in "known"."""
    words = re.escape(" ".join(answer.lower().split()))
    return bool(words) and bool(re.search(rf"(?<!\w){words}(?!\w)", " ".join(text.lower().split())))
