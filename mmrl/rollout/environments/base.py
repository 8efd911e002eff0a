"""What answers a policy between its turns: stage `environment` of a run.

    @stage("environment", paper="-", formula="...", confidence="ours", modalities=LANGUAGE)
    class Echo(Environment):
        def step(self, state, output):
            return Observation.of(f"You said {output}.") if "?" in output else Done()

An environment sees text and media, never ids or positions: the policy's family renders what it shows. It decides from
the prompt and the outputs alone, so a conversation can be played again, and draws nothing that is not in its state.
`Here` runs one in this process; a configured run puts it into worker processes with a time limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from mmrl.errors import ConfigError
from mmrl.record import Prompt

MAX_TURNS = 4
MADE = ("turn", "segment", "state", "calls", "bad_calls", "observed")
"""Columns that every environment makes, beside its own."""
ROWS = {"calls": 0.0, "bad_calls": 0.0, "observed": 0.0}
"""Those of them that are row constants, with what stands on rows that met no environment."""
NUMBERS = 2**24 - 1  # whole numbers that float32 holds exactly, 0 aside


@dataclass(frozen=True)
class Observation:
    """What the policy is shown next.

    messages  chat messages, as in a prompt: content is a string or a list of text, image and video parts
    images    PIL images or paths, in the order of the image parts
    videos    clips or paths, in the order of the video parts
    bad       why a call could not be followed, in words that repeat, since they are counted; "" for a good one
    of_turn   numbers of the turn it answers, of those the environment declares in `turn_columns`
    """

    messages: Sequence[Mapping[str, Any]]
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    bad: str = ""
    of_turn: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, text: str, *, images: Sequence[Any] = (), videos: Sequence[Any] = (), bad: str = "",
        of_turn: Mapping[str, float] | None = None,
    ) -> Observation:  # fmt: skip
        """One message of the user: media first, then `text`."""
        parts = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in videos]
        content = [*parts, {"type": "text", "text": text}] if text else parts
        return cls([{"role": "user", "content": content}], tuple(images), tuple(videos), bad, of_turn or {})


@dataclass(frozen=True)
class Done:
    """The conversation is over: what was written last is the answer.

    columns  row constants, of those the environment declares
    of_turn  numbers of the last turn, as in `Observation`
    """

    columns: Mapping[str, float] = field(default_factory=dict)
    of_turn: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """The environment failed a row: it stays unscored, and `cause` is counted."""

    cause: str


class Environment:
    """A class of stage `environment`; parameters are keyword-only.

    columns       {name: fill} of the row constants that `Done.columns` may set, `fill` for rows that say nothing
    turn_columns  names of the columns (B, T) of `mmrl.columns` that `of_turn` of its replies may set. Each number
                  stands on every action of its turn, of a column that adds up on the last
    max_turns     runs of acting in a response: one whose last run still asks for something ends as "length"
    """

    columns: ClassVar[Mapping[str, float]] = {}
    turn_columns: ClassVar[tuple[str, ...]] = ()
    max_turns: int = MAX_TURNS

    def reset(self, prompt: Prompt) -> Any:
        """The state of a new conversation about `prompt`; by default the prompt itself."""
        return prompt

    def step(self, state: Any, output: str) -> Observation | Done:
        """What follows `output`, the text of the run that just ended. `state` may be changed in place."""
        raise NotImplementedError(f"{type(self).__name__} has no `step`")


class Surroundings(Protocol):
    """An environment at work on many rows at once.

    columns, turn_columns, max_turns  of the environment
    ceiling             share of lost rows in a call of `Actor.act` past which the run stops
    counts              calls and failures by cause since this process started
    """

    columns: Mapping[str, float]
    turn_columns: tuple[str, ...]
    max_turns: int
    ceiling: float
    counts: Counter

    def reset(self, prompts: Sequence[Prompt]) -> list[Any]:
        """A conversation, or `Lost`, for each prompt; several rows may bring the same prompt."""

    def step(self, conversations: Sequence[Any], outputs: Sequence[str]) -> list[Observation | Done | Lost]:
        """What follows each output."""


class Here:
    """An environment in this process: what it raises loses a row, what hangs is not noticed."""

    def __init__(self, environment: Environment, *, ceiling: float = 0.5) -> None:
        self.environment, self.ceiling = environment, ceiling
        self.columns, self.max_turns = environment.columns, turns_of(environment)
        self.turn_columns = environment.turn_columns
        self.counts: Counter = Counter()

    def reset(self, prompts: Sequence[Prompt]) -> list[Any]:
        return [self._tried(self.environment.reset, prompt) for prompt in prompts]

    def step(self, conversations: Sequence[Any], outputs: Sequence[str]) -> list[Observation | Done | Lost]:
        replies = [self._tried(self._answered, s, o) for s, o in zip(conversations, outputs, strict=True)]
        count(self.counts, replies)
        return replies

    def _answered(self, state: Any, output: str) -> Observation | Done:
        return checked(self.environment.step(state, output), self.environment)

    @staticmethod
    def _tried(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            return Lost(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))


def turns_of(environment: Environment) -> int:
    if not isinstance(environment.max_turns, int) or environment.max_turns < 1:
        raise ConfigError(f"environment: max_turns={environment.max_turns!r}: expected a whole number from 1 on")
    return environment.max_turns


def made_by(environment: Environment) -> tuple[str, ...]:
    """Every column that rollouts in it have."""
    return (*MADE, *environment.columns, *environment.turn_columns)


def checked(reply: Any, environment: Environment) -> Observation | Done:
    """`reply` if it is one; raises TypeError with what is wrong, which loses the row."""
    if isinstance(reply, Done):
        if unknown := reply.columns.keys() - environment.columns.keys():
            raise TypeError(f"Done sets the column {sorted(unknown)[0]!r}, which `columns` does not declare")
    elif not isinstance(reply, Observation):
        raise TypeError(f"step returned {type(reply).__name__}, expected Observation or Done")
    if unknown := reply.of_turn.keys() - set(environment.turn_columns):
        raise TypeError(f"of_turn sets {sorted(unknown)[0]!r}, which `turn_columns` does not declare")
    return reply


def count(counts: Counter, replies: Sequence[Observation | Done | Lost]) -> None:
    """Add calls, bad calls by cause and lost rows by cause."""
    for reply in replies:
        if isinstance(reply, Observation):
            counts["calls"] += 1
            if reply.bad:
                counts[f"bad/{reply.bad}"] += 1
        elif isinstance(reply, Lost):
            counts[f"lost/{reply.cause}"] += 1
