"""Failed groups see hints that the policy wrote itself, from a reference solution that must not be told."""

from __future__ import annotations

from typing import Any

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_mean
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, first_text, hinter_of, latest, tells, with_text, worth
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

LEVELS = (
    "name the one idea that matters, and nothing specific",
    "say which way to go and what comes first",
    "lead through all steps but the last",
)
WRITE = (
    "Here is a solution of the above:\n{solution}\n\nWrite a hint for somebody who cannot solve it yet: {level}. "
    "Never state the answer."
)
SHOW = "Hint: {hint}"
WRITING, TRYING = "write", "try"


def next_level(level: int, rate: float, low: float = 0.1, high: float = 0.35, top: int = 3) -> int:
    """SAGE-light: one up where at most `low` were right, one down where more than `high` were, 0 for no hint."""
    if rate <= low:
        return min(level + 1, top)
    return max(level - 1, 0) if rate > high else level


class SelfHints(Strategy):
    """What both forms share: writing a hint, and showing it."""

    origins = (OWN, SHOWN)
    columns = {"hint": 0.0}

    def __init__(self, column: str, answer: str, write: str, show: str, hinter: str) -> None:
        filled(write, "rollout 'sage': write", solution="", level="")
        filled(show, "rollout 'sage': show", hint="")
        self.column, self.answer, self.write, self.show = column, answer, write, show
        self.writer = hinter_of("rollout 'sage'", hinter)
        self.data_columns = (column,)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        """What a hint is written from, None without a solution; or the prompt with a hint."""
        kind, level, text = ask.note
        if kind == TRYING:
            return with_text(prompt, filled(self.show, "sage", hint=text), "hint")
        solution = first_text(prompt, self.column)
        if solution is None:
            return None
        return with_text(prompt, filled(self.write, "sage", solution=solution, level=LEVELS[level - 1]), "write")

    def usable(self, ask: Ask, prompt: Prompt, texts: list[str]) -> list[str]:
        """Hints that say something, and not the answer."""
        return [text.strip() for text in texts if text.strip() and not tells(text, prompt, self.answer)]


@stage(
    "rollout",
    "sage_self_hint",
    paper="SAGE: self-hints, arXiv 2602.03143",
    formula="while none of a group is right: the policy writes a hint of level 1, 2, 3 from the solution and the group "
    "is asked again with it; the last try trains, under the prompt that it saw",
    modalities=LANGUAGE,
    confidence="partly",
)
class Sage(SelfHints):
    """Hints of rising detail for groups that fail, until one member is right.

    column  of the data set: the solution a hint is written from, a text (or several, of which the first)
    answer  column with what a hint must not state; one that does is thrown away, and counted
    levels  how many are tried, at most 3
    write   what the policy is told to write a hint from, {solution} and {level} in it
    show    what is put behind the user's words, {hint} in it
    hinter  who writes: "policy", or "teacher", the model of `policy.teacher`

    Column `hint (B,)` is the level, 0 for none. Each try costs one writing and a group. Source: BaohaoLiao/SAGE,
    hint_trainer.py; there one writing gives all three levels as JSON, which small policies cannot.
    """

    def __init__(
        self,
        *,
        column: str = "demonstrations",
        answer: str = "solution",
        levels: int = 3,
        write: str = WRITE,
        show: str = SHOW,
        hinter: str = "policy",
    ) -> None:
        super().__init__(column, answer, write, show, hinter)
        if not 1 <= levels <= len(LEVELS):
            raise ConfigError(f"rollout 'sage': levels={levels}; expected 1 to {len(LEVELS)}")
        self.levels = levels
        self._level: dict[int, int] = {}
        self._written: dict[int, str] = {}

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """First the groups whose hint is written, then those that need one of the next level."""
        if step.round == 1:
            self._level, self._written = {}, {}
        keep = latest(batch, "hint")
        asks = []
        for group, text in sorted(self._written.items()):
            level = self._level[group]
            note = (TRYING, level, text)
            asks.append(Ask(step.group_size, group=group, note=note, trains="shown", columns={"hint": float(level)}))
        self._written = {}
        if not asks:
            for group in failed_groups(batch.index(keep.nonzero().squeeze(1))):
                level = self._level.get(group, 0) + 1
                if level <= self.levels:
                    self._level[group] = level
                    asks.append(Ask(1, group=group, note=(WRITING, level, ""), aside=True, writer=self.writer))
        return Plan(asks, counted=keep, trained=keep)

    def heard(self, ask: Ask, texts: list[str]) -> None:
        assert ask.group is not None
        if texts:
            self._written[ask.group] = texts[0]


@stage(
    "rollout",
    "sage_light",
    method="sage_self_hint",
    paper="SAGE-light: self-hints, arXiv 2602.03143",
    formula="a prompt keeps a level: one up where at most `low` of its group were right, one down where more than "
    "`high`; at its next visit the group sees the hint of that level",
    modalities=LANGUAGE,
    confidence="partly",
)
class SageLight(SelfHints):
    """No second try in a step: what a prompt's last visit came to decides how much help its next one gets.

    low, high  shares of right answers at which help grows and shrinks
    others     as in `sage_self_hint`

    The hint is written at the end of a visit, while its group is held, and kept with the level. Column `hint (B,)` is
    the level. Prompts are known by their row of the data set. Source: as `sage_self_hint`, reward_tracker.py.
    """

    def __init__(
        self,
        *,
        column: str = "demonstrations",
        answer: str = "solution",
        low: float = 0.1,
        high: float = 0.35,
        write: str = WRITE,
        show: str = SHOW,
        hinter: str = "policy",
    ) -> None:
        super().__init__(column, answer, write, show, hinter)
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"rollout 'sage_light': low={low}, high={high}; expected 0 <= low <= high <= 1")
        self.low, self.high = low, high
        self._known: dict[int, tuple[int, str]] = {}
        self._rows: dict[int, int] = {}
        self._new: dict[int, int] = {}

    def ask(self, step: Step) -> Plan | None:
        self._new = {}
        return Plan([self._visit(index, step) for index in step.draw(step.prompts_per_step)])

    def _visit(self, index: int, step: Step) -> Ask:
        level, text = self._known.get(index, (0, ""))
        if not level or not text:
            return Ask(step.group_size, index=index)
        note = (TRYING, level, text)
        return Ask(step.group_size, index=index, note=note, trains="shown", columns={"hint": float(level)})

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """Levels of the groups that came since the last round; a level that changed gets its hint written."""
        value = worth(batch)
        rate = group_mean(value, batch.group, batch.counted & ~value.isnan())
        asks = []
        for group in sorted(set(batch.group.tolist())):
            row = step.groups[group]
            if group in self._new or row is None:
                continue
            level = self._known.get(row, (0, ""))[0]
            self._new[group] = next_level(level, float(rate[batch.group == group][0]), self.low, self.high)
            self._rows[group] = row
            if self._new[group] == 0:
                self._known.pop(row, None)
            elif self._new[group] != level:
                asks.append(Ask(1, group=group, note=(WRITING, self._new[group], ""), aside=True, writer=self.writer))
        return Plan(asks) if asks else None

    def heard(self, ask: Ask, texts: list[str]) -> None:
        assert ask.group is not None
        self._known[self._rows[ask.group]] = (self._new[ask.group], texts[0] if texts else "")

    def state_dict(self) -> dict[str, Any]:
        return {"levels": {str(row): [level, text] for row, (level, text) in sorted(self._known.items())}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._known = {int(row): (int(level), str(text)) for row, (level, text) in state["levels"].items()}
