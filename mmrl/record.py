"""The one record that travels through a step.

    Prompt      a row of the dataset: messages, media, and the columns rewards read
    Request     what a rollout is asked for: a prompt, how many members, where they begin
    Scores      what outputs are worth, component by component
    Rollouts    what the policy did: actions, log-probs, outputs, and what it needs to score them again
    Batch       the plain tensors of Rollouts that stage functions read; gathered from all ranks
    Evaluation  what a forward pass says of the actions: log-probs and declared columns

`B` rows are rollouts, `T` is the action axis: tokens for language policies, denoising steps for flow
policies. Outside the mask every `(B, T)` tensor is 0, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl import saving
from mmrl.batch import BEHAVIOURS, FINISHED, LOST, SOURCES, TRUNCATED, Batch, Evaluation, Selection, owned, task_number
from mmrl.errors import DataError

__all__ = [
    "BEHAVIOURS", "FINISHED", "LOST", "SOURCES", "TRUNCATED", "Answer", "Batch", "Evaluation", "Prompt", "Request",
    "Rollouts", "Scores", "Selection", "Start", "Stored", "owned", "pad_columns", "task_number",
]  # fmt: skip


@dataclass
class Prompt:
    """One row of a dataset.

    id        stable across runs and ranks: keys every random draw made for this prompt
    messages  chat messages `[{"role", "content"}]`; content is a string or a list of
              `{"type": "text" | "image" | "video", ...}` parts. For generators, one user message
    images    PIL images or paths, in the order of the image parts
    videos    `mmrl.data.video.Clip` or paths, in the order of the video parts
    columns   everything else: `solution`, `task`, whatever the rewards read by name
    beside    other prompts for the same answers, by name, which passes can show in its place: "bare" is what a strategy
              added a hint to, "teacher" what a teacher sees
    """

    id: str
    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Prompt] = field(default_factory=dict, repr=False)

    @property
    def asks(self) -> str:
        """The id of the question: its own, or that of the prompt it is a hinted form of."""
        return self.beside["bare"].asks if "bare" in self.beside else self.id

    @property
    def text(self) -> str:
        """The text of all messages, media left out."""
        parts = []
        for message in self.messages:
            content = message["content"]
            if isinstance(content, str):
                parts.append(content)
            else:
                parts += [p["text"] for p in content if p.get("type") == "text"]
        return "\n".join(parts)

    @property
    def marked(self) -> str:
        """The text of all messages, with `<image>` and `<video>` where media stand."""
        contents = [m["content"] for m in self.messages]
        joined = [c if isinstance(c, str) else "".join(p.get("text", f"<{p['type']}>") for p in c) for c in contents]
        return "\n".join(joined)


@dataclass
class Start:
    """Where new rows begin: behind the first `action` actions of a row that exists.

    row     one row of `Rollouts`: its actions, and for denoising its states, are taken over, log-probs and owners too,
            so that what was sampled there is trained in every row that goes through it
    action  how many actions are taken over
    """

    row: Rollouts
    action: int


@dataclass
class Request:
    """Ask for `count` rollouts of `prompt`, as members `first_member ...` of group `group`.

    shown     the prompt as the policy sees it while sampling, where that differs (hints); the loss is
              computed under `prompt`
    prefix    action ids every member starts with, which nobody sampled: replayed, never trained
    start     the row every member goes on from, and where; not together with `prefix`
    """

    prompt: Prompt
    count: int
    group: int
    first_member: int = 0
    shown: Prompt | None = None
    prefix: Tensor | None = None
    start: Start | None = None


@dataclass
class Answer:
    """An answer somebody wrote, token by token.

    ids        (t,) of the policy's tokenizer, end token included where it ended
    log_probs  (t,) of whoever sampled it, where they are known
    """

    ids: Tensor
    log_probs: Tensor | None = None


@dataclass
class Stored:
    """An output that was made before.

    output      as rewards read it: a PIL picture
    reward      what it was worth then; None: the run's rewards score it
    components  of that reward, by name
    """

    output: Any
    reward: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Scores:
    """What outputs are worth: the reward stage's answer, one entry per output.

    components  {name: (N,)} NaN where that component left the output unscored
    reward      (N,) the combination, NaN where any component it needs is NaN
    success     (N,) 1, 0 or NaN: the verifiable part, used by pass@k and difficulty statistics
    causes      why outputs stayed unscored: {"accuracy: timeout": 3}
    columns     {column that stage functions read: N values}: a number, a number for each action, or spans of the
                output's characters, [start, end] or [start, end, value]; None where there is none
    """

    components: dict[str, Tensor]
    reward: Tensor
    success: Tensor
    causes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    return [value[i] for i in rows.tolist()]


def pad_columns(tensors: Sequence[Tensor], width: int | None = None) -> list[Tensor]:
    """Pad the second axis of `(B, T, ...)` tensors with zeros to a common width."""
    width = width or max(t.shape[1] for t in tensors)
    padded = []
    for t in tensors:
        if t.shape[1] < width:
            t = torch.cat([t, t.new_zeros(t.shape[0], width - t.shape[1], *t.shape[2:])], dim=1)
        padded.append(t)
    return padded


@dataclass
class Rollouts:
    """What a policy did on some prompts. Tensors live where the policy put them.

    prompts        P prompts, each once
    encoded        P entries: the policy's own encoding of each prompt (ids, pixel tensors, embeddings), kept
                   so that training scores exactly what was sampled
    prompt         (B,) index into `prompts`
    group, member  (B,) which group, and which of its prompt's members in this step: `(group, member)` is unique on all
                   ranks
    actions        (B, T, ...) token ids, or denoising-step indices
    mask           (B, T) bool: sampled by this policy
    old_log_probs  (B, T) float32
    outputs        B decoded outputs: strings, or PIL images, or lists of frames
    length         (B,) number of actions
    finish         B reasons: "stop", "length", or "lost: " and why, where an environment failed the row
    extent         (B,) columns to lay out: actions, and what was replayed or shown between them
    media          B entries, None for most: the tensors of images and clips that an environment showed within the
                   response, in the order of their columns
    owner          (B, T) the member that drew the action, -1 outside the mask: rows of a group that began in another
                   one share its first actions. Equal (group, column, owner) is one state
    source         (B,) where a row comes from, a place in `SOURCES`: 0 is this policy, now
    behaviour      (B,) whose log-probs its ratio divides by, a place in `BEHAVIOURS`
    components     reward components {name: (B,)}, NaN where unscored
    reward         (B,) combined reward, NaN where unscored
    success        (B,) 1, 0 or NaN
    columns        declared needs {Need.key: (B,) or (B, T)}
    replay         what the policy stores to score the same actions again {name: (B, ...)}; `shown` (B,) says
                   which rows were sampled under another prompt (`Request.shown`)
    """

    prompts: list[Prompt]
    encoded: list[Any]
    prompt: Tensor
    group: Tensor
    member: Tensor
    actions: Tensor
    mask: Tensor
    old_log_probs: Tensor
    outputs: list[Any]
    length: Tensor
    finish: list[str]
    extent: Tensor | None = None
    media: list[dict[str, Any] | None] | None = None
    owner: Tensor | None = None
    source: Tensor | None = None
    behaviour: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    reward: Tensor | None = None
    success: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    replay: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.owner is None:
            self.owner = owned(self.member[:, None].expand(self.mask.shape), self.mask)
        if self.source is None:
            self.source = torch.zeros_like(self.member)
        if self.behaviour is None:
            self.behaviour = torch.zeros_like(self.member)
        if self.extent is None:
            self.extent = self.length.clone()
        if self.media is None:
            self.media = [None] * len(self.finish)

    def __len__(self) -> int:
        return self.mask.shape[0]

    def index(self, rows: Tensor | Sequence[int]) -> Rollouts:
        """These rows, with only the prompts they use."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        prompt = self.prompt[rows.to(self.prompt.device)]
        used = torch.unique(prompt)
        changes: dict[str, Any] = {
            "prompts": [self.prompts[i] for i in used.tolist()],
            "encoded": [self.encoded[i] for i in used.tolist()],
            "prompt": torch.searchsorted(used, prompt),
        }
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in changes or value is None:
                continue
            changes[f.name] = (
                {k: _rows(v, rows) for k, v in value.items()} if isinstance(value, dict) else _rows(value, rows)
            )
        return replace(self, **changes)

    def prompt_a_row(self) -> Rollouts:
        """The same rows, each with an entry of its own in `prompts` and `encoded`: nothing is shared between them."""
        places = self.prompt.tolist()
        changes: dict[str, Any] = {name: [getattr(self, name)[p] for p in places] for name in ("prompts", "encoded")}
        return replace(self, **changes, prompt=torch.arange(len(places), device=self.prompt.device))

    @classmethod
    def concatenate(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Rows of all parts, `T` padded to the widest; every part must carry the same columns.

        A prompt that stands in several parts, the very same object, stands once in the result, as first encoded.
        """
        first = parts[0]
        merged: dict[str, Any] = {"prompts": [], "encoded": []}
        places: dict[int, int] = {}
        rows = []
        for part in parts:
            for prompt, encoded in zip(part.prompts, part.encoded, strict=True):
                if places.setdefault(id(prompt), len(merged["prompts"])) == len(merged["prompts"]):
                    merged["prompts"].append(prompt)
                    merged["encoded"].append(encoded)
            moved = torch.tensor([places[id(p)] for p in part.prompts], device=part.prompt.device)
            rows.append(moved[part.prompt])
        merged["prompt"] = torch.cat(rows)
        for f in fields(cls):
            if f.name in merged:
                continue
            values = [getattr(p, f.name) for p in parts]
            if isinstance(values[0], dict):
                keys = set(values[0])
                if any(set(v) != keys for v in values):
                    raise DataError(f"cannot concatenate rollouts: {f.name} differ: {[sorted(v) for v in values]}")
                merged[f.name] = {k: _cat([v[k] for v in values], first.mask) for k in values[0]}
            elif isinstance(values[0], list):
                merged[f.name] = [x for v in values for x in v]
            elif all(v is None for v in values):
                merged[f.name] = None
            else:
                merged[f.name] = _cat(values, first.mask)
        return cls(**merged | {"owner": owned(merged["owner"], merged["mask"])})

    def save(self, path: str | Path) -> None:
        """Tensors to `path`.safetensors, texts and names to `path`.json. Media of prompts and encodings stay out."""
        prompts = [{"id": p.id, "messages": p.messages, "columns": p.columns} for p in self.prompts]
        outputs = [o if isinstance(o, str) else None for o in self.outputs]
        values = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("prompts", "encoded", "outputs")
        }
        saving.write(path, values, {"outputs": outputs, "finish": self.finish, "prompts": prompts})

    @classmethod
    def load(cls, path: str | Path) -> Rollouts:
        """What `save` wrote; `encoded` comes back empty, so the policy must encode before scoring."""
        values, texts = saving.read(path)
        values |= {"prompts": [Prompt(**p) for p in texts["prompts"]], "encoded": [None] * len(texts["prompts"])}
        media = values.pop("media", {})
        values["media"] = [media.get(row) for row in range(len(texts["finish"]))]
        return cls(**values | {"outputs": texts["outputs"], "finish": texts["finish"]})


def _cat(values: list[Tensor], mask: Tensor) -> Tensor:
    if values[0].dim() >= 2:
        values = pad_columns(values)
    return torch.cat(values)
