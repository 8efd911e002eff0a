"""Responses of several turns: acted runs, and between them what an environment showed.

All rows that are still in conversation write their next run together, each behind a new pass over its whole row so
far; what a row draws is keyed by its member and by how many tokens it has written, so it does not depend on the
others. Everything happens within one entry into acting, however many turns a rank's rows take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl.columns import COLUMNS
from mmrl.errors import PolicyError, SurroundingsError
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.engines.base import Context, Draw
from mmrl.policies.language.engines.bridge import Write
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.families.turns import joined
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.taken import Taken
from mmrl.policies.language.turns import Shown, Turns, response_media
from mmrl.policies.language.writing import WritingPlan
from mmrl.randomness import Key
from mmrl.record import FINISHED, LOST, TRUNCATED, Prompt, Request, Rollouts
from mmrl.rollout.environments.base import Lost, Observation, Surroundings
from mmrl.rollout.environments.states import state_of, turn_column


class Speaker(Protocol):
    """What conversing needs of a language policy."""

    config: Any
    processor: Any
    family: Family
    stopping: Any
    bridge: Any
    taken: Taken

    @property
    def acts_apart(self) -> bool: ...
    @property
    def rescored(self) -> bool: ...
    @property
    def inner(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def turns(self) -> Turns: ...
    def ready(self, prompts: dict[str, Prompt]) -> tuple[dict[str, Encoded], dict[str, Encoded]]: ...
    def prefills(
        self, requests: Sequence[Request], encoded: dict[str, Encoded], ready: dict[str, Encoded]
    ) -> dict[Encoded, Prefill]: ...
    def context(self, request: Request, ready: dict[str, Encoded], prefix: Tensor) -> Encoded: ...
    def acting(self) -> AbstractContextManager[None]: ...
    def rescore(
        self, rows: Rollouts, plan: WritingPlan, shown: Sequence[Encoded], media: Sequence[Any] | None = None
    ) -> None: ...


@dataclass
class Line:
    """A row in the making; its columns so far.

    context  the prompt as it is shown, without what follows it
    draw     None: greedy
    ids, log_probs, mask, owner, turn  of each column
    run      column at which the last run began
    parts    what follows the context: runs (n,), and what was shown
    version  of the weights that wrote the last run
    states   the state each run began in
    said     numbers that the environment gave of each run it heard
    """

    request: Request
    member: int
    context: Encoded
    draw: Draw | None
    limit: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    run: int = 0
    turns: int = 0
    written: int = 0
    shown: int = 0
    bad: int = 0
    parts: list[Tensor | Shown] = field(default_factory=list)
    version: int = 0
    finish: str = ""
    constants: dict[str, float] = field(default_factory=dict)
    states: list[int] = field(default_factory=lambda: [0])
    said: list[Mapping[str, float]] = field(default_factory=list)

    def begin(self, prefix: Tensor) -> None:
        """Columns that are replayed, and trained only where another row of the group drew them."""
        count = len(prefix)
        self.ids, self.turn, self.written = prefix.tolist(), [0] * count, count
        self.parts = [prefix] if count else []
        self.log_probs, self.mask, self.owner = [0.0] * count, [False] * count, [-1] * count
        if (start := self.request.start) is not None:
            row = start.row
            assert row.owner is not None
            if not bool(row.mask[0, :count].all()):
                raise PolicyError(
                    f"prompt {self.request.prompt.id!r}: a row cannot start behind what an environment showed: its "
                    "state is not kept; start within the first run, or use no environment"
                )
            self.log_probs, self.mask = row.old_log_probs[0, :count].tolist(), [True] * count
            self.owner = row.owner[0, :count].tolist()

    def room(self, most: int) -> int:
        """Tokens the next run may have, under `most` written ones and the row's limit on columns."""
        return min(most - self.written, self.limit - len(self.ids))

    def write(self, tokens: list[int], log_probs: list[float]) -> None:
        self.run = len(self.ids) if self.turns else 0
        self.ids += tokens
        self.parts.append(torch.tensor(tokens))
        self.log_probs += log_probs
        self.mask += [True] * len(tokens)
        self.owner += [self.member] * len(tokens)
        self.turn += [self.turns] * len(tokens)
        self.turns += 1
        self.written += len(tokens)

    def show(self, shown: Shown) -> None:
        count = len(shown.encoded)
        self.ids += shown.encoded.ids.tolist()
        self.log_probs += [0.0] * count
        self.mask += [False] * count
        self.owner += [-1] * count
        self.turn += [0] * count
        self.parts.append(shown)


@dataclass
class Conversation:
    """The rows of some requests, from their prompts to their last turn.

    encoded, ready  of each prompt by its id: as it is kept, and with features of its media
    shown           the prompt of each request as it is shown
    """

    policy: Speaker
    prompts: dict[str, Prompt]
    encoded: dict[str, Encoded]
    ready: dict[str, Encoded]
    plan: WritingPlan
    shown: list[Encoded]
    lines: list[Line]

    @classmethod
    def of(cls, policy: Speaker, requests: Sequence[Request], key: Key, greedy: bool = False) -> Conversation:
        prompts: dict[str, Prompt] = {}
        for request in requests:
            prompts.setdefault(request.prompt.id, request.prompt)
        encoded, ready = policy.ready(prompts)
        plan = WritingPlan.of(requests, policy.config.max_new_tokens)
        shown = [policy.context(request, ready, torch.zeros(0, dtype=torch.long)) for request in requests]
        lines = _lines(policy, plan, shown, None if greedy else plan.draws(key))
        return cls(policy, prompts, encoded, ready, plan, shown, lines)

    @property
    def asked(self) -> list[str]:
        """The prompt of each row, as it is shown."""
        return [(line.request.shown or line.request.prompt).id for line in self.lines]

    def speak(
        self, surroundings: Surroundings, write: Write, prefills: Mapping[Encoded, Prefill] | None = None
    ) -> Conversation:
        """All turns of all rows."""
        policy, lines = self.policy, self.lines
        states = surroundings.reset([line.request.prompt for line in lines])
        _run(policy, lines, self.plan.contexts(self.shown, prefills or {}), write)
        _listen(policy, lines, list(range(len(lines))), states, surroundings)
        while open_ := [i for i, line in enumerate(lines) if not line.finish]:
            some = [lines[i] for i in open_]
            _run(policy, some, [_context(policy, line) for line in some], write)
            _listen(policy, lines, open_, states, surroundings)
        return self


def converse(
    policy: Speaker, requests: Sequence[Request], key: Key, surroundings: Surroundings, *, greedy: bool = False
) -> Rollouts:
    """`count` responses per request, in the order of the requests. Raises SurroundingsError where too many are lost."""
    talk = Conversation.of(policy, requests, key, greedy)
    prefills = {} if greedy or policy.acts_apart else policy.prefills(requests, talk.encoded, talk.ready)
    with policy.acting():
        work = partial(talk.speak, surroundings, prefills=prefills)
        talk = policy.bridge.act(None if greedy else key, talk.asked, policy.inner.model, work)
        _refuse_losses(talk.lines, surroundings.ceiling)
        rows = _record(policy, talk.lines, talk.prompts, talk.encoded, surroundings)
        if policy.rescored and not greedy:
            media = [_media(policy, line, line.context) for line in talk.lines]
            policy.rescore(rows, talk.plan, talk.shown, media)
    policy.taken.write(None if policy.acts_apart else policy.inner, requests)
    return rows


def _lines(policy: Speaker, plan: WritingPlan, shown: Sequence[Encoded], draws: Sequence[Draw] | None) -> list[Line]:
    lines = []
    each = draws or [None] * len(plan.member)
    for index, member, draw in zip(plan.context.tolist(), plan.member, each, strict=True):
        request, context = plan.requests[index], shown[index]
        line = Line(request, member, context, draw, _columns(policy, len(context)))
        line.begin(plan.prefixes[index])
        if line.room(plan.limit) < 1:
            raise PolicyError(f"prompt {request.prompt.id!r}: policy.max_extent={line.limit} leaves nothing to write")
        lines.append(line)
    return lines


def _columns(policy: Speaker, prompt: int) -> int:
    """Columns a response may take behind a prompt of so many tokens."""
    there = policy.inner.core.config.get_text_config().max_position_embeddings
    positions = min(there, policy.family.capabilities.limit or there) - prompt
    return positions if policy.config.max_extent is None else min(policy.config.max_extent, positions)


def _context(policy: Speaker, line: Line) -> Context:
    """What the next run of a row continues: all of it so far."""
    turns = [part for part in line.parts if isinstance(part, Shown)]
    bare = torch.cat([part.bare if isinstance(part, Shown) else part for part in line.parts])
    prompt = line.request.shown or line.request.prompt
    return Context(prompt, _whole(policy, line, line.context), bare, shown=[turn.prompt for turn in turns])


def _whole(policy: Speaker, line: Line, entry: Encoded) -> Encoded:
    """The row so far behind a prompt."""
    parts = [part.encoded if isinstance(part, Shown) else part for part in line.parts]
    return joined(policy.family, policy.inner.core, replace(entry, features=None), parts)


def _run(policy: Speaker, lines: Sequence[Line], contexts: Sequence[Context], write: Write) -> None:
    """Let rows write their next run, all in one request to the engine."""
    budget = torch.tensor([line.room(policy.config.max_new_tokens) for line in lines])
    draws = [replace(line.draw, begun=line.written) for line in lines if line.draw is not None]
    done, version = write(contexts, budget, draws or None)
    sizes, stopped = done.length.tolist(), done.stopped.tolist()
    for line, size, ids, log_probs, ended in zip(
        lines, sizes, done.tokens.tolist(), done.log_probs.tolist(), stopped, strict=True
    ):
        line.write(ids[:size], log_probs[:size])
        line.finish, line.version = "" if ended else TRUNCATED, version


def _listen(policy: Speaker, lines: list[Line], rows: list[int], states: list[Any], surroundings: Surroundings) -> None:
    """Rows that ended a run hear what the environment says of it."""
    for row in rows:
        if not lines[row].finish and isinstance(states[row], Lost):
            lines[row].finish = LOST + states[row].cause
    waiting = [row for row in rows if not lines[row].finish]
    replies = surroundings.step([states[row] for row in waiting], [_said(policy, lines[row]) for row in waiting])
    for row, reply in zip(waiting, replies, strict=True):
        _hear(policy, lines[row], reply, surroundings.max_turns)


def _hear(policy: Speaker, line: Line, reply: Any, most: int) -> None:
    if isinstance(reply, Lost):
        line.finish = LOST + reply.cause
        return
    line.said.append(reply.of_turn)
    if isinstance(reply, Observation):
        line.shown, line.bad = line.shown + 1, line.bad + bool(reply.bad)
        if line.turns >= most:
            line.finish = TRUNCATED
            return
        where = f"{line.request.prompt.id}, what the environment shows after turn {line.turns}"
        shown = policy.turns.turn(reply, line.ids[-1], where)
        fits = len(line.ids) + len(shown.encoded) < line.limit and line.written < policy.config.max_new_tokens
        if fits:
            line.show(shown)
            line.states.append(state_of(reply))
        line.finish = "" if fits else TRUNCATED
    else:
        line.finish, line.constants = FINISHED, dict(reply.columns)


def _said(policy: Speaker, line: Line) -> str:
    """The text of the last run."""
    return policy.processor.tokenizer.decode(line.ids[line.run :], skip_special_tokens=True)


def _refuse_losses(lines: Sequence[Line], ceiling: float) -> None:
    causes = Counter(line.finish.removeprefix(LOST) for line in lines if line.finish.startswith(LOST))
    if causes.total() > ceiling * len(lines):
        why = "; ".join(f"{cause} ({times})" for cause, times in causes.most_common(5))
        raise SurroundingsError(
            f"the environment failed {causes.total()} of {len(lines)} rows, more than the ceiling of {ceiling:.0%}: "
            f"{why}"
        )


def _record(
    policy: Speaker,
    lines: Sequence[Line],
    prompts: dict[str, Prompt],
    encoded: dict[str, Encoded],
    surroundings: Surroundings,
) -> Rollouts:
    device = policy.device
    names = {name: place for place, name in enumerate(prompts)}

    def column(name: str, kind: torch.dtype, fill: int = 0) -> Tensor:
        parts = [torch.tensor(getattr(line, name), dtype=kind) for line in lines]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill).to(device)

    def constant(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=device)

    mask = column("mask", torch.bool)
    extent = constant([len(line.ids) for line in lines])
    constants = {
        name: constant([float(line.constants.get(name, fill)) for line in lines])
        for name, fill in surroundings.columns.items()
    }
    length, turn = mask.sum(1), column("turn", torch.long)
    said = [line.said for line in lines]
    of_turns = {name: turn_column(COLUMNS[name], said, mask, turn) for name in surroundings.turn_columns}
    states = torch.nn.utils.rnn.pad_sequence([torch.tensor(line.states) for line in lines], True, -1).to(device)
    return Rollouts(
        prompts=list(prompts.values()),
        encoded=[encoded[name] for name in prompts],
        prompt=constant([names[line.request.prompt.id] for line in lines]),
        group=constant([line.request.group for line in lines]),
        member=constant([line.member for line in lines]),
        actions=column("ids", torch.long),
        mask=mask,
        old_log_probs=column("log_probs", torch.float32),
        outputs=[_said(policy, line) for line in lines],
        length=length,
        finish=[line.finish for line in lines],
        extent=extent,
        media=[_media(policy, line, encoded[line.request.prompt.id]) for line in lines],
        owner=column("owner", torch.long, -1),
        columns=constants
        | of_turns
        | {
            "turn": turn,
            "segment": torch.where(mask, turn, -1),
            "state": torch.where(mask, states.gather(1, turn), -1),
            "calls": constant([float(line.shown) for line in lines]),
            "bad_calls": constant([float(line.bad) for line in lines]),
            "observed": _observed(lines).to(device),
        },
        replay={
            "shown": constant([line.request.shown is not None for line in lines]),
            "version": constant([line.version for line in lines]),
        },
    )


def _observed(lines: Sequence[Line]) -> Tensor:
    """(B,) columns an environment filled."""
    return torch.tensor([float(len(line.ids) - line.written) for line in lines])


def _media(policy: Speaker, line: Line, entry: Encoded) -> dict[str, Any] | None:
    """The media of a response with the positions of its columns behind the prompt `entry`."""
    shown = [part.encoded for part in line.parts if isinstance(part, Shown)]
    if not any(part.media for part in shown):
        return None
    return response_media(entry, _whole(policy, line, entry), shown)
