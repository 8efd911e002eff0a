"""The reward stage: named components, weighted and added; what fails is unscored, counted, never a silent 0.

    panel = RewardPanel([{"name": "accuracy", "weight": 0.9}, {"name": "format", "weight": 0.1}])
    scores = panel.score(outputs, prompts)     # mmrl.record.Scores, one entry per output
    panel.close()

Each reward is called on the whole batch, then, if that fails, row by row (`rows`), in a worker process (`pool`).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import RewardError
from mmrl.record import Prompt, Scores
from mmrl.rewards.calls import WHOLE, Inputs, Outcome, Style, prepare
from mmrl.rewards.frames import Pooling, framewise
from mmrl.rewards.parts import EARNED, parts_of
from mmrl.rewards.pool import CallFailed, IsolatedReward, Worker, WorkerPool
from mmrl.rewards.presets import PRESETS
from mmrl.rewards.ray_workers import starter
from mmrl.rewards.registry import Columns, Reward, declared, registered, resolve
from mmrl.rewards.rows import (
    MEDIA,
    Refused,
    RowScores,
    count_causes,
    first_failure,
    gather_inputs,
    is_blank,
    key_column,
    keys_of,
    made_column,
    problem_of,
    row_values,
    score_rows,
)
from mmrl.rewards.worker import describe
from mmrl.settings import Section, read_section

MAIN_KEYS = ("overall", "score")  # what EasyR1 and verl call the number that trains
SUCCESS_KEYS = ("success", "accuracy", *MAIN_KEYS, WHOLE)
NAN = float("nan")
BUDGET_CALLS, SMALLEST_BUDGET = 10, 60.0
"""Time limits that rows tried one by one may use up together, and seconds they have anyway: workers start slowly."""


class RewardSpec(Section):
    """One reward of the panel.

    name      a registered name, path/to/file.py:function, package.module:function or a dotted name
    label     its component name; the default is the name, or the function's name for your own
    weight    its share of the sum; for a reward that returns dictionaries, one weight per key
    options   keyword arguments the function is given
    style     the signature it has: trl, trl_chat, verl, easyr1
    timeout   seconds one call may take; None: the panel's default
    success   its value >= 0.5 says the output is right; None: as the reward declares
    none      what None means: "unscored" (the row is left out), or "skip" (the row is worth the sum of its other
              rewards, as in TRL's multi-task training)
    isolated  run in a worker process; None: as the reward declares
    python    the interpreter of that process, /path/to/venv/bin/python: for a reward whose packages do not go with the
              trainer's; it needs Python 3.11 and what the reward imports, and gets this package from here
    frames    of a reward that reads pictures, on videos: it is called on every frame, and its answers are pooled by
              "mean", "min", "max", "median", "first" or "last"
    of        of outputs of several stretches, which one it reads: text or picture, the last of each, or text_1,
              picture_2; what it is worth is then what that stretch earned, too, in the column action_reward. None: all
              of it, as `output.text`, `output.picture` and `output.stretches`
    columns   keys of its answers that stage functions read as columns, and that are worth nothing themselves: one
              number, one for each action, or spans of the output's characters, [start, end] or [start, end, value]
    """

    name: str = Field(min_length=1)
    label: str | None = None
    weight: float | dict[str, float] = 1.0
    options: dict[str, Any] = {}
    style: Style = "trl"
    timeout: float | None = Field(None, gt=0)
    success: bool | None = None
    none: Literal["unscored", "skip"] = "unscored"
    isolated: bool | None = None
    python: str | None = None
    frames: Pooling | None = None
    of: str | None = None
    columns: list[str] = []

    @property
    def makes(self) -> list[str]:
        """Columns that stage functions may read."""
        return [*self.columns, *([EARNED] if self.of is not None and EARNED not in self.columns else [])]


@dataclass
class Member:
    """A reward of the panel, ready to be called. `keys` are those seen in its answers so far."""

    label: str
    spec: RewardSpec
    columns: Columns
    call: Callable[[Inputs], list[Outcome]]
    success: bool
    isolated: bool
    check: Callable[..., None] | None = None
    keys: list[str] = field(default_factory=list)

    def learn_keys(self, outcomes: Sequence[Outcome]) -> None:
        self.keys += [key for key in keys_of(outcomes) if key not in (*self.keys, *self.spec.columns)]
        for key in (key for outcome in outcomes for key in outcome.lists if key not in self.spec.columns):
            raise RewardError(
                f"reward {self.label!r} returns lists under {key!r}, where a number is expected; if stage functions "
                f"are to read them, declare it: rewards=[{{name: {self.spec.name}, columns: [{key}]}}]"
            )

    @property
    def all_keys(self) -> list[str]:
        """Those seen and those weighted, so that components stay the same from call to call."""
        weighted = self.spec.weight if isinstance(self.spec.weight, dict) else ()
        return list(dict.fromkeys((*self.keys, *weighted))) or ([] if self.spec.columns else [WHOLE])

    @property
    def main(self) -> str | None:
        return next((key for key in (WHOLE, *MAIN_KEYS) if key in self.all_keys), None)

    def component(self, key: str) -> str:
        return self.label if key == self.main else f"{self.label}/{key}"

    def weight(self, key: str) -> float:
        """Of a key of its answers: a mapping names them, a number goes to the main key, or else to each."""
        if isinstance(self.spec.weight, dict):
            return self.spec.weight.get(key, 0.0)
        carries = key != "success" if self.main is None else key == self.main
        return self.spec.weight if carries else 0.0


class RewardPanel:
    """Rewards, called apart from the trainer and combined.

    specs             RewardSpecs, mappings, names, or functions with TRL's signature (which run in this process:
                      a time limit needs a name)
    workers           processes; rewards run side by side, one call each
    default_timeout   seconds one call may take
    unscored_ceiling  share of unscored outputs in one call past which RewardError stops the run
    budget            seconds a reward may take for one batch when its rows are tried one by one; None: ten calls
    """

    def __init__(
        self,
        specs: Iterable[RewardSpec | Mapping[str, Any] | str | Callable],
        *,
        workers: int = 2,
        default_timeout: float = 30.0,
        unscored_ceiling: float = 0.5,
        budget: float | None = None,
    ):
        given = [one for spec in specs for one in read_spec(spec)]
        if not given:
            raise RewardError("no rewards: name at least one, such as 'accuracy'")
        self._ceiling, self._budget = unscored_ceiling, budget
        self._default_timeout = default_timeout
        self._pool = WorkerPool(max(1, min(workers, len(given))), starter())
        self._foreign: dict[str, WorkerPool] = {}
        self._threads = ThreadPoolExecutor(len(given), thread_name_prefix="reward")
        try:
            self.members = [by_frames(self._member(spec, default_timeout)) for spec in given]
            labels = Counter(member.label for member in self.members)
            if twice := [label for label, count in labels.items() if count > 1]:
                raise RewardError(f"two rewards are called {twice[0]!r}: give one of them a `label`")
            if all(not member.spec.weight for member in self.members):
                raise RewardError("every reward has weight 0: nothing would be trained")
            made = Counter(name for member in self.members for name in member.spec.columns)
            made += Counter({EARNED: int(EARNED in made and any(member.spec.of for member in self.members))})
            if twice := [name for name, count in made.items() if count > 1]:
                raise RewardError(f"two rewards make the column {twice[0]!r}: take it from one of them")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RewardPanel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pool in (self._pool, *self._foreign.values()):
            pool.close()

    def load(self) -> None:
        """Have the named rewards that run beside the trainer's models load theirs, before the first rollout: a call
        with no rows does. Raises RewardError that names the reward."""
        for member in self.members:
            if member.isolated or member.spec.name not in registered():
                continue
            try:
                member.call(Inputs([], [], {name: [] for name in member.columns.required}))
            except (RewardError, CallFailed) as error:
                why = error.cause if isinstance(error, CallFailed) else str(error)
                raise RewardError(f"reward {member.label!r} cannot be made ready: {why}") from None

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise RewardError for the first prompt that some reward could never score, before training starts."""
        for prompt in prompts:
            for member in self.members:
                row_values(member.label, prompt, member.columns.required)
            for error in self.refusals(prompt.columns):
                raise RewardError(f"prompt {prompt.id!r}: {error}", error.column)

    @property
    def makes(self) -> dict[str, str]:
        """{column that stage functions may read: who makes it}."""
        return {name: f"reward {member.label!r}" for member in self.members for name in member.spec.makes}

    @property
    def required_columns(self) -> list[str]:
        """The data set's columns that every row must have; what every prompt has, `images`, is not among them."""
        named = dict.fromkeys(name for member in self.members for name in member.columns.required)
        return [name for name in named if name not in (*MEDIA, "prompt_id")]

    def refusals(self, row: Mapping[str, Any]) -> Iterator[RewardError]:
        """Why rewards could never score this row, whatever the answer: `mmrl check` and training ask the same.

        One error for each column that a reward reads and that is null or blank, and for each truth it cannot read.
        """
        for member in self.members:
            blank = [name for name in member.columns.required if name in row and is_blank(row[name])]
            for name in blank:
                state = "null" if row[name] is None else "blank"
                yield RewardError(f"column {name!r} is {state}, and reward {member.label!r} reads it", name)
            if member.check and not blank:
                try:
                    member.check(row, **member.spec.options)
                except RewardError as error:
                    yield error

    def score(self, outputs: Sequence[Any], prompts: Sequence[Prompt]) -> Scores:
        """What outputs are worth, one prompt per output. Raises RewardError past the ceiling."""
        if len(outputs) != len(prompts):
            raise RewardError(f"{len(outputs)} outputs for {len(prompts)} prompts; expected one prompt per output")
        read = [parts_of(outputs, member.spec.of, member.label) for member in self.members]
        pairs = zip(self.members, read, strict=True)
        inputs = [gather_inputs(member.label, member.columns, shown, prompts) for member, shown in pairs]
        most = int(self._ceiling * len(outputs)) + 1
        futures = [
            self._threads.submit(score_rows, member.call, rows, most, self._allowed(member))
            if member.isolated
            else None
            for member, rows in zip(self.members, inputs, strict=True)
        ]
        results = []
        for member, rows, future in zip(self.members, inputs, futures, strict=True):
            try:
                results.append(future.result() if future else score_rows(member.call, rows, most))
            except Refused as refused:
                raise RewardError(f"prompt {prompts[refused.row].id!r}: reward {member.label!r}: {refused}") from None
        scores = self._assemble(results, len(outputs))
        return scores if all(m.spec.of is None for m in self.members) else self._with_earned(scores, outputs)

    def _with_earned(self, scores: Scores, outputs: Sequence[Any]) -> Scores:
        """What each stretch earned: the weighted answers of the rewards that read it alone."""
        spans: list[list[list[float]]] = [[] for _ in outputs]
        for member in (m for m in self.members if m.spec.of is not None):
            weighted = [(scores.components[member.component(key)], member.weight(key)) for key in member.all_keys]
            worth = sum((values * weight for values, weight in weighted if weight), torch.zeros(len(outputs)))
            for row, (output, value) in enumerate(zip(outputs, worth.tolist(), strict=True)):
                place = output.place(member.spec.of)
                spans[row] += [[place, place + 1, value]] if not math.isnan(value) else []
        return replace(scores, columns={**scores.columns, EARNED: spans})

    def _allowed(self, member: Member) -> float:
        timeout = member.spec.timeout or self._default_timeout
        return self._budget or max(SMALLEST_BUDGET, BUDGET_CALLS * timeout)

    def _assemble(self, results: list[RowScores], count: int) -> Scores:
        components: dict[str, Tensor] = {}
        causes: Counter = Counter()
        columns: dict[str, list] = {}
        reward, applies = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)
        for member, result in zip(self.members, results, strict=True):
            member.learn_keys(result.outcomes)
            for key in member.all_keys:
                column = components[member.component(key)] = torch.tensor(
                    key_column(result.outcomes, key), dtype=torch.float32
                )
                problems = [problem_of(outcome, key) for outcome in result.outcomes]
                skipped = torch.tensor(
                    [member.spec.none == "skip" and each == "None" for each in problems], dtype=torch.bool
                )
                weight = member.weight(key)
                if weight or len(member.all_keys) == 1:
                    counted = ["" if skip else each for each, skip in zip(problems, skipped.tolist(), strict=True)]
                    causes.update(count_causes(member.component(key), counted))
                if weight:
                    reward += torch.where(skipped, 0.0, weight * column.double())
                    applies |= ~skipped
            for name in member.spec.columns:
                columns[name], problems = made_column(result.outcomes, name)
                causes.update(count_causes(f"{member.label}/{name}", problems))
                reward[torch.tensor([bool(problem) for problem in problems], dtype=torch.bool)] = NAN
            weightless = not any(member.weight(key) for key in member.all_keys)
            if weightless and len(member.all_keys) > 1 and not member.spec.columns:
                causes.update(count_causes(member.label, map(first_failure, result.outcomes)))
        if count and not components:
            raise RewardError(
                f"the rewards {', '.join(m.label for m in self.members)} make columns alone and say of no output what "
                "it is worth; name one that does, such as rewards=[{name: accuracy}]"
            )
        reward[~applies] = NAN
        reward = _in_float32(reward, causes)
        self._enforce_ceiling(reward, results, causes)
        return Scores(components, reward, self._success(results, count), dict(causes), columns)

    def _success(self, results: list[RowScores], count: int) -> Tensor:
        """(N,) 1 where every component that decides is >= 0.5, 0 where one is not, NaN where one is missing."""
        pairs = list(zip(self.members, results, strict=True))
        declared = [pair for pair in pairs if pair[0].success]
        accurate = [pair for pair in pairs if pair[0].label == "accuracy" or "accuracy" in pair[0].keys]
        deciding = [
            key_column(result.outcomes, next((k for k in SUCCESS_KEYS if k in member.keys), WHOLE))
            for member, result in declared or accurate
        ]
        if not deciding or not count:
            return torch.full((count,), NAN)
        worst = torch.tensor(deciding).amin(0)  # NaN wins
        return torch.where(worst.isnan(), NAN, (worst >= 0.5).float())

    def _enforce_ceiling(self, reward: Tensor, results: list[RowScores], causes: Counter) -> None:
        unscored = int(reward.isnan().sum())
        if unscored <= self._ceiling * len(reward):
            return
        why = "; ".join(f"{cause} ({times})" for cause, times in causes.most_common(5))
        traceback = next((result.traceback for result in results if result.traceback), "")
        raise RewardError(
            f"{unscored} of {len(reward)} outputs are unscored, more than the ceiling of {self._ceiling:.0%}: "
            f"{why or 'no reward applies to them'}" + (f"\n{traceback}" if traceback else "")
        )

    def _member(self, spec: RewardSpec | Callable, default_timeout: float) -> Member:
        if not isinstance(spec, RewardSpec):
            name = getattr(spec, "__name__", type(spec).__name__)
            return _local(RewardSpec(name=name, isolated=False), declared(spec) or Reward(name, spec))
        known = registered().get(spec.name)
        if spec.python is not None:
            return self._foreign_member(spec, known, default_timeout)
        if spec.isolated is False or (spec.isolated is None and known and not known.isolated):
            return _local(spec, _resolved(spec.name))
        timeout = spec.timeout or default_timeout
        isolated = IsolatedReward(self._pool, _absolute(spec.name), spec.options, spec.style, timeout)
        try:
            about = isolated.load()
        except CallFailed as failed:
            raise RewardError(f"reward {spec.name!r} cannot be loaded: {failed.cause}\n{failed.traceback}") from None
        if spec.isolated is None and not about["isolated"]:
            return _local(spec, _resolved(spec.name))
        success = about["success"] if spec.success is None else spec.success
        columns = Columns(tuple(about["required"]), tuple(about["optional"]), about["everything"])
        check = known.check if known else None
        return Member(_label(spec), spec, columns, isolated, success, True, check)

    def _foreign_member(self, spec: RewardSpec, known: Reward | None, default_timeout: float) -> Member:
        """A reward that runs under an interpreter of its own, one process for each of them."""
        python = str(Path(spec.python).expanduser())
        if spec.isolated is False:
            raise RewardError(
                f"reward {spec.name!r}: isolated=false runs in this process, and python={python} in another"
            )
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise RewardError(f"reward {spec.name!r}: python={python} is no program; expected /path/to/venv/bin/python")
        pool = self._foreign.setdefault(python, WorkerPool(1, partial(Worker, python=python)))
        isolated = IsolatedReward(pool, _absolute(spec.name), spec.options, spec.style, spec.timeout or default_timeout)
        try:
            about = isolated.load()
        except (CallFailed, RewardError) as failed:
            why = f"{failed.cause}\n{failed.traceback}" if isinstance(failed, CallFailed) else failed
            raise RewardError(f"reward {spec.name!r} cannot be loaded by {python}: {why}") from None
        columns = Columns(tuple(about["required"]), tuple(about["optional"]), about["everything"])
        success = about["success"] if spec.success is None else spec.success
        return Member(_label(spec), spec, columns, isolated, success, True, known.check if known else None)


def _in_float32(reward: Tensor, causes: Counter) -> Tensor:
    """The weighted sums as the batch holds them; one that float32 cannot hold is unscored, and counted."""
    held = reward.float()
    lost = held.isinf()
    if lost.any():
        causes.update({f"weighted sum: {reward[lost][0].item():.3g}, infinite in float32": int(lost.sum())})
    return torch.where(lost, NAN, held)


def read_spec(given: RewardSpec | Mapping[str, Any] | str | Callable) -> list[RewardSpec | Callable]:
    """What one entry of the list of rewards stands for: itself, or the rewards of a preset."""
    if callable(given) and not isinstance(given, RewardSpec):
        return [given]
    values = {"name": given} if isinstance(given, str) else given
    spec = values if isinstance(values, RewardSpec) else read_section(RewardSpec, dict(values), "rewards")
    if spec.name not in PRESETS:
        return [spec]
    changed = spec.model_fields_set - {"name", "weight"}
    if changed or isinstance(spec.weight, dict):
        raise RewardError(f"preset {spec.name!r} takes only a number as weight; write its rewards out to change more")
    return [RewardSpec(**{**each, "weight": spec.weight * each["weight"]}) for each in PRESETS[spec.name]]


def by_frames(member: Member) -> Member:
    """The member as it is, or called on every frame of a video where its `frames` says so."""
    if member.spec.frames is None:
        return member
    return replace(member, call=guarded(framewise(member.call, member.spec.frames)))


def _local(spec: RewardSpec, reward: Reward) -> Member:
    """A reward that runs in this process: guarded against what it raises, not against what it hangs on."""
    callee = prepare(reward, spec.options, spec.style)
    success = reward.success if spec.success is None else spec.success
    return Member(_label(spec), spec, callee.columns, guarded(callee), success, False, reward.check)


def guarded(callee: Callable[[Inputs], list[Outcome]]) -> Callable[[Inputs], list[Outcome]]:
    def call(inputs: Inputs) -> list[Outcome]:
        try:
            return callee(inputs)
        except (RewardError, CallFailed):
            raise
        except (Exception, SystemExit) as error:
            about = describe(error)
            raise CallFailed(about["error"], about["traceback"]) from None

    return call


def _resolved(name: str) -> Reward:
    try:
        return resolve(name)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _label(spec: RewardSpec) -> str:
    return spec.label or spec.name.rpartition(":")[2].rpartition(".")[2]


def _absolute(name: str) -> str:
    """A file path that means the same in every process."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).expanduser().resolve()}:{attribute}" if place.endswith(".py") else name
