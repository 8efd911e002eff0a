"""What a rollout strategy says: whom to ask, which rows are given, who counts. Stage `rollout` of a step.

    @stage("rollout", paper="...", formula="...", confidence="ours")
    class Twice(Strategy):
        def join(self, batch, step):
            solved = ...                       # reads the scored batch of all ranks
            return Plan(ask=[Ask(2, group=g) for g in unsolved]) if step.round == 1 else None

A strategy runs on every rank as a function of the gathered batch and the step alone, so all ranks make the same plan;
they compare its digest. It never numbers groups or members and never sees a rank: the collector does both. What needs
a prompt's own words, or the texts of rows, is made where the rows are, by `shown` and `given`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.randomness import Key
from mmrl.record import BEHAVIOURS, SOURCES, Answer, Batch, Prompt, Rollouts, Stored
from mmrl.rollout.origins import HINTED, OWN, SHOWN, Origin, brought

Behaviour = Literal["policy", "given", "one"]
Writer = Literal["policy", "teacher"]
WRITERS = ("policy", "teacher")


@dataclass(frozen=True)
class Address:
    """The state after the first `action` actions of member `member` of a held group."""

    member: int
    action: int


@dataclass(frozen=True)
class Ask:
    """`count` more members, of a held group or of a new one.

    group    a group of this step; None opens a new one, for `index` or `prompt`
    index    the dataset row of a new group, as `step.draw` gave it
    prompt   of a new group whose prompt the strategy made itself; its id must say so
    start    where the members begin: in another member of the same held group
    note     what `Strategy.shown` is told, where these members see something else than the prompt; None: they do not
    trains   "prompt": the loss is under the prompt; "shown": under what was shown
    aside    texts for `Strategy.heard`, such as hints: no rows of the step, neither scored nor trained
    writer   of what is asked aside: "policy", or "teacher", the model of `policy.teacher`
    whole    of what is asked aside, texts that were cut at the limit are no use
    columns  row constants of these members, of those the strategy declares
    by       which of several nested strategies asked; they need not say it
    """

    count: int
    group: int | None = None
    index: int | None = None
    prompt: Prompt | None = None
    start: Address | None = None
    note: Any = None
    trains: Literal["prompt", "shown"] = "prompt"
    aside: bool = False
    writer: Writer = "policy"
    whole: bool = False
    columns: Mapping[str, float] = field(default_factory=dict)
    by: int = 0

    def __post_init__(self) -> None:
        if self.aside and (self.group is None or self.note is None or self.start is not None):
            raise ConfigError("what is asked aside names a held `group` and a `note` for `shown`, and no `start`")
        if self.writer not in WRITERS or (self.writer != "policy" and not self.aside):
            raise ConfigError(f"writer={self.writer!r}: expected one of {WRITERS}, and of rows the policy")


@dataclass(frozen=True)
class Given:
    """Rows that nobody acts for: `Strategy.given` makes them where the group's prompt is.

    source     a name of `mmrl.record.SOURCES`
    behaviour  the ratio's denominator: "policy" (its own log-probs at collection), "given" (those that came with the
               rows), "one" (probability 1 at every action, as methods that imitate have it)
    others     as in `Ask`
    """

    source: str
    behaviour: Behaviour = "policy"
    group: int | None = None
    index: int | None = None
    prompt: Prompt | None = None
    note: Any = None
    columns: Mapping[str, float] = field(default_factory=dict)
    by: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES[1:]:
            raise ConfigError(unknown("source of given rows", self.source, SOURCES[1:]))
        if self.behaviour not in BEHAVIOURS:
            raise ConfigError(unknown("behaviour of given rows", self.behaviour, BEHAVIOURS))


@dataclass(frozen=True)
class Plan:
    """One round.

    ask, given        what is wanted; both empty: no further round, only the masks count
    counted, trained  (B,) bool over the gathered batch the plan was made from: rows that stay in the baseline and in
                      the loss. A strategy's latest masks hold; rows that come later are in. None: all
    """

    ask: Sequence[Ask] = ()
    given: Sequence[Given] = ()
    counted: Tensor | None = None
    trained: Tensor | None = None

    @property
    def asks(self) -> bool:
        return bool(self.ask or self.given)

    def digest(self) -> str:
        """Equal for equal plans, whichever rank made them."""
        masks = [None if m is None else m.tolist() for m in (self.counted, self.trained)]
        wanted = [*map(_plain, self.ask), *map(_plain, self.given)]
        return hashlib.sha256(repr((wanted, masks)).encode()).hexdigest()[:16]


def planned(wanted: Ask | Given) -> Origin:
    """What the rows of a request will be; those that are asked for aside are no rows."""
    if isinstance(wanted, Given):
        return brought(wanted.source, wanted.behaviour)
    if wanted.note is None:
        return OWN
    return SHOWN if wanted.trains == "shown" else HINTED


def _plain(wanted: Ask | Given) -> tuple:
    values = dict(vars(wanted))
    values["prompt"] = None if wanted.prompt is None else wanted.prompt.id
    values["columns"] = sorted(wanted.columns.items())
    return type(wanted).__name__, sorted(values.items(), key=lambda item: item[0])


@dataclass
class Step:
    """What a strategy may know and do in one step.

    number, steps     of the run, from 0
    key               for its own draws: `step.key.at(purpose="...")`
    group_size        rollouts a prompt starts with
    prompts_per_step  groups a step should end with
    draw              `draw(n)` takes n dataset rows from stage 1
    select            stage 4 tried on a batch: `counted` and `trained` as the recipe's selections would leave them
    round             of a strategy that is asked to `join`: how often it was in this step, this time included, whatever
                      rounds those inside it had before. To the collector, rounds of acting that are done
    groups            dataset row of each group of this step, None where a strategy made the prompt
    texts, asked      {(group, member): output} and {group: words of its prompt} so far, of all ranks, where a strategy
                      has `reads_texts`; else empty
    turns             {(group, member): the text of each run of acting} where one has `reads_turns`
    """

    number: int
    steps: int
    key: Key
    group_size: int
    prompts_per_step: int
    draw: Callable[[int], list[int]]
    select: Callable[[Batch], Batch]
    round: int = 0
    groups: list[int | None] = field(default_factory=list)
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    asked: dict[int, str] = field(default_factory=dict)
    turns: dict[tuple[int, int], list[str]] = field(default_factory=dict)

    def first(self) -> Plan:
        """Independent draws: `group_size` members of each of `prompts_per_step` prompts."""
        return Plan([Ask(self.group_size, index=i) for i in self.draw(self.prompts_per_step)])


class Strategy:
    """How a group comes to be. Every method may be left out.

    columns  {name: fill} of the row constants that `Ask.columns` and `Given.columns` may set: columns (B,) of the
             batch, `fill` for rows that say nothing
    made     names of the columns that `make` gives
    origins      what its rows are, of those it asks for or gives: `mmrl.rollout.origins`. None says nothing, and
                 `mmrl plan` says that; what is planned and not declared is refused
    writer       of what it asks for aside, "policy" or "teacher"; the second wants a run with `policy.teacher`
    reads_texts  whether `step.texts` and `step.asked` are wanted, which ranks then exchange
    reads_turns  whether `step.turns` is wanted too
    apart        of one that plans a first round and goes on from it: a step may be begun before the one before it ends
    """

    columns: ClassVar[Mapping[str, float]] = {}
    made: ClassVar[tuple[str, ...]] = ()
    origins: tuple[Origin, ...] | None = None
    writer: Writer = "policy"
    reads_texts: bool = False
    reads_turns: bool = False
    apart: ClassVar[bool] = False

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """The data set, once, before the first step and before a state is loaded."""

    def group_members(self, group_size: int) -> int:
        """How many rollouts a group has in the end, as far as settings say: for `mmrl plan`."""
        return group_size

    def counted(self) -> dict[str, float]:
        """Numbers of the step for its metrics, the same on all ranks: what is remembered, what was left out."""
        return {}

    def ask(self, step: Step) -> Plan | None:
        """The first requests of a step; None leaves them to independent draws. Of several strategies one plans them."""
        return None

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """After each round of scoring: what else is wanted, or None. `batch` is scored and shaped, not selected."""
        return None

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        """What the members of `ask` see: `rows` are those of their group so far, with texts. Runs on one rank.

        None where there is nothing to show, such as a row of the data set without a hint: these members are not asked.
        """
        raise NotImplementedError(f"{type(self).__name__} asked with a note, and has no `shown`")

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer] | list[Stored]:
        """The rows of `given`, as texts, token by token, or as stored outputs; none at all is an answer too. Runs on
        one rank."""
        raise NotImplementedError(f"{type(self).__name__} plans given rows, and has no `given`")

    def usable(self, ask: Ask, prompt: Prompt, texts: list[str]) -> list[str]:
        """Which of the texts written for an `ask` aside may be used; the others are counted. Runs on one rank."""
        return texts

    def heard(self, ask: Ask, texts: list[str]) -> None:
        """The usable texts of an `ask` aside; not called where there was nothing to show. Runs on all ranks."""
        raise NotImplementedError(f"{type(self).__name__} asks aside, and has no `heard`")

    def beside(self, prompt: Prompt, rows: Rollouts) -> Mapping[str, Prompt]:
        """After the last round, of each held group: prompts that passes show in place of its own, by the name that
        `View.of("beside", prompt=name)` reads. Runs on one rank."""
        return {}

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        """Once a step, of the rows of all ranks: columns (B,) or (B, T) that come of the group as it is in the end.
        What reads the passes that `observe` comes too early for may be remembered here."""
        return {}

    def observe(self, batch: Batch, step: Step) -> None:
        """Once a step, after the last round: here, and in `make`, a strategy remembers."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
