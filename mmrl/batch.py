"""The plain tensors that stage functions read, and what they say: the half of the record without prompts and texts."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

FINISHED, TRUNCATED, LOST = "stop", "length", "lost: "
SOURCES = ("policy", "demonstration", "replay", "rewritten")
"""Where a row may come from. `source (B,)` holds the place: everything but 0 was not sampled for this step."""

BEHAVIOURS = ("policy", "given", "one")
"""Whose log-probs a row's ratio divides by: the policy's own, those that came with the row, probability 1."""

KINDS = ("tokens", "transition", "matching", "masked", "schedule")
"""Of actions: what scores them. The column `kind (B, T)` of rows that hold several kinds is a place in it."""


def owned(owner: Tensor, mask: Tensor) -> Tensor:
    """`owner (B, T)` with -1 outside `mask`."""
    return torch.where(mask.bool(), owner, -1)


@dataclass
class Batch:
    """The plain tensors that stage functions read: one rollout batch, gathered from all ranks.

    Only `mask` and `old_log_probs` are always there. A caller who brings the objective into their own loop
    fills what their recipe reads; what is missing raises and says who asked for it.

    mask           (B, T) bool: sampled by the policy
    old_log_probs  (B, T) float32, 0 outside the mask
    group          (B,) long; ragged groups are welcome
    member         (B,) long: number among the prompt's members of this step; with `group` it keys random choices,
                   whatever the row order
    task           (B,) long: rows of the same task share a number
    prompt         (B,) long: a number of the prompt's id, for what remembers prompts across steps; a hinted prompt has
                   that of the prompt it was made of
    reward         (B,) NaN where unscored
    components     {name: (B,)} reward components before they were combined
    success        (B,) 1, 0 or NaN
    length         (B,) number of actions
    truncated      (B,) bool: cut at the length limit
    counted        (B,) bool: enters baselines
    trained        (B,) bool: enters the loss
    update         (B,) long: which optimizer step of this rollout batch the row belongs to. A selection sees 0 and
                   may answer 1, 2, ...: a further round of optimizer steps, after all of the first
    advantage      (B, T), set by stages 5 and 6
    loss_mask      (B, T) what the aggregation divides by, set by stage 6
    actions        (B, T) token ids or step indices, where a function compares members
    owner          (B, T) the member that drew the action, -1 outside; a tree's rows share the first actions of others
    source         (B,) a place in `SOURCES`, 0: sampled by this policy for this step
    helped         (B,) bool: not what the policy makes of the prompt by itself: given, or sampled under a hint
    max_length     the limit on T, a constant of the run
    step, steps    of the run, for schedules
    columns        declared needs by `Need.key`, or by plain name
    """

    mask: Tensor
    old_log_probs: Tensor
    group: Tensor | None = None
    member: Tensor | None = None
    task: Tensor | None = None
    prompt: Tensor | None = None
    reward: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    success: Tensor | None = None
    length: Tensor | None = None
    truncated: Tensor | None = None
    counted: Tensor | None = None
    trained: Tensor | None = None
    update: Tensor | None = None
    advantage: Tensor | None = None
    loss_mask: Tensor | None = None
    actions: Tensor | None = None
    owner: Tensor | None = None
    source: Tensor | None = None
    helped: Tensor | None = None
    max_length: int | None = None
    step: int = 0
    steps: int = 1
    seed: int = 0
    columns: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.mask = self.mask.bool()
        rows, device = self.mask.shape[0], self.mask.device
        if self.length is None:
            self.length = self.mask.sum(1)
        if self.group is None:
            self.group = torch.arange(rows, device=device)
        if self.member is None:
            earlier = self.group[:, None] == self.group[None, :]
            self.member = earlier.tril(-1).sum(1)
        if self.task is None:
            self.task = torch.zeros(rows, dtype=torch.long, device=device)
        for name in ("counted", "trained"):
            if getattr(self, name) is None:
                setattr(self, name, torch.ones(rows, dtype=torch.bool, device=device))
        if self.truncated is None:
            self.truncated = torch.zeros(rows, dtype=torch.bool, device=device)
        if self.update is None:
            self.update = torch.zeros(rows, dtype=torch.long, device=device)
        if self.loss_mask is None:
            self.loss_mask = self.mask
        owner = self.member[:, None].expand(self.mask.shape) if self.owner is None else self.owner
        self.owner = owned(owner, self.mask)
        if self.source is None:
            self.source = torch.zeros(rows, dtype=torch.long, device=device)
        if self.helped is None:
            self.helped = self.source > 0

    def __len__(self) -> int:
        return self.mask.shape[0]

    def __getitem__(self, name: str) -> Tensor:
        """A declared column, by the name the function reads it under."""
        return _column(self.columns, self.aliases, name, "batch")

    def __contains__(self, name: str) -> bool:
        return self.aliases.get(name, name) in self.columns or name in self.columns

    def seen_by(self, aliases: dict[str, str]) -> Batch:
        """A shallow view in which a stage function finds its columns under its own names."""
        return replace(self, aliases=aliases)

    def index(self, rows: Tensor) -> Batch:
        """These rows of every `(B, ...)` tensor."""
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = value[rows]
            elif f.name in ("components", "columns"):
                changes[f.name] = {k: v[rows] for k, v in value.items()}
        return replace(self, **changes)

    @classmethod
    def of(cls, rollouts: Any, **constants) -> Batch:
        """What stage functions may read of `mmrl.record.Rollouts`."""
        return cls(
            mask=rollouts.mask,
            old_log_probs=rollouts.old_log_probs,
            group=rollouts.group,
            member=rollouts.member,
            task=_tasks(rollouts),
            prompt=_prompt_numbers(rollouts),
            reward=rollouts.reward,
            components=dict(rollouts.components),
            success=rollouts.success,
            length=rollouts.length,
            truncated=torch.tensor([f == TRUNCATED for f in rollouts.finish], device=rollouts.mask.device),
            actions=rollouts.actions if rollouts.actions.dim() == 2 else None,
            owner=rollouts.owner,
            source=rollouts.source,
            helped=_helped(rollouts),
            columns=dict(rollouts.columns),
            **constants,
        )


def _prompt_numbers(rollouts: Any) -> Tensor:
    """(B,) a 63-bit number of each row's prompt id, equal on every rank and in every run."""
    digests = [hashlib.blake2b(p.asks.encode(), digest_size=8).digest() for p in rollouts.prompts]
    numbers = torch.tensor([int.from_bytes(d, "big") >> 1 for d in digests], dtype=torch.long)
    return numbers.to(rollouts.prompt.device)[rollouts.prompt]


def _helped(rollouts: Any) -> Tensor:
    """(B,) bool: given rows, and rows that saw more than their prompt, trained under it or not."""
    device = rollouts.prompt.device
    added = torch.tensor([p.asks != p.id for p in rollouts.prompts], device=device)[rollouts.prompt]
    shown = rollouts.replay.get("shown", torch.zeros_like(added)).to(device)
    return added | shown.bool() | (rollouts.source > 0).to(device)


def _tasks(rollouts: Any) -> Tensor:
    """(B,) a number for each row's `task` column, equal on every rank."""
    numbers = [task_number(p.columns.get("task", "")) for p in rollouts.prompts]
    return torch.tensor(numbers, device=rollouts.prompt.device)[rollouts.prompt]


def task_number(task: Any) -> int:
    """What `Batch.task` holds for rows of this task: equal on every rank and in every run."""
    return zlib.crc32(str(task).encode())


@dataclass
class Selection:
    """What stage 4 decides about a batch. Fields left None keep what the batch says.

    counted  (B,) bool: enters baselines
    trained  (B,) bool: enters the loss
    update   (B,) long: the round of optimizer steps of this rollout batch the row belongs to: 0 the first, 1 after it

    Who is asked for more is the business of a rollout strategy (`mmrl.rollout`).
    """

    counted: Tensor | None = None
    trained: Tensor | None = None
    update: Tensor | None = None


@dataclass
class Evaluation:
    """What a forward pass says of the actions.

    log_probs  (B, T) float32, with gradient in the update; 0 outside the mask
    columns    {Need.key or plain name: (B, T) or (B,)}
    """

    log_probs: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Tensor:
        return _column(self.columns, self.aliases, name, "evaluation")

    def __contains__(self, name: str) -> bool:
        return self.aliases.get(name, name) in self.columns or name in self.columns

    def seen_by(self, aliases: dict[str, str]) -> Evaluation:
        return replace(self, aliases=aliases)


def _column(columns: dict[str, Tensor], aliases: dict[str, str], name: str, owner: str) -> Tensor:
    for key in (aliases.get(name, name), name):
        if key in columns:
            return columns[key]
    raise KeyError(f"{owner}[{name!r}] is not there: declare it in `needs`. Present: {sorted(columns) or 'nothing'}")
