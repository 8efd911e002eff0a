"""Several hints for a prompt that fails, each with a group of its own; the best of them trains."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, first_text, hinter_of, tells, with_text
from mmrl.rollout.origins import SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

WRITE = (
    "Somebody answered the above with:\n{attempt}\n\nThat is wrong. A right solution is:\n{solution}\n\n"
    "Write a short hint that would have put them on the way. Never state the answer."
)
SHOW = "Hint: {hint}"
WRITING, TRYING = "write", "try"


@stage(
    "rollout",
    "hill",
    paper="HiLL: learned hints, arXiv 2604.00698",
    formula="for a prompt nobody solved: hints written from a failed answer and the solution, a group under each",
    modalities=LANGUAGE,
    confidence="partly",
)
class Hill(Strategy):
    """The rollouts of HiLL: selection `hill` takes the hint whose right answers stay likely without it.

    hints   a failed prompt gets at most so many; each costs one writing and a group
    column  of the data set: the solution, a text (or several, of which the first)
    answer  column with what a hint must not state; one that does is thrown away, and counted
    write   what the hinter is told, {attempt} and {solution} in it
    show    what is put behind the user's words, {hint} in it
    hinter  who writes: "policy", or "teacher", the model of `policy.teacher`

    Column `hint (B,)` numbers the hints of a prompt, 0 for none. The hinter is not trained (the authors train
    theirs by `hint_reward`). Source: Andree-9/HiLL, hinter_utils.py.
    """

    origins = (SHOWN,)
    columns = {"hint": 0.0}

    def __init__(
        self,
        *,
        hints: int = 4,
        column: str = "demonstrations",
        answer: str = "solution",
        write: str = WRITE,
        show: str = SHOW,
        hinter: str = "policy",
    ) -> None:
        if hints < 1:
            raise ConfigError(f"rollout 'hill': hints={hints}; choose at least 1")
        filled(write, "rollout 'hill': write", attempt="", solution="")
        filled(show, "rollout 'hill': show", hint="")
        self.hints, self.column, self.answer, self.write, self.show = hints, column, answer, write, show
        self.writer = hinter_of("rollout 'hill'", hinter)
        self.data_columns = (column,)
        self._written: dict[int, list[str]] = {}
        self._seen: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """Hints for the groups that failed since the last round, then a group under each hint."""
        if step.round == 1:
            self._written, self._seen = {}, set()
        asks = []
        for group, texts in sorted(self._written.items()):
            row = step.groups[group]
            for number, text in enumerate(dict.fromkeys(texts), 1):
                note = (TRYING, text)
                asks.append(Ask(step.group_size, index=row, note=note, trains="shown", columns={"hint": float(number)}))
        self._written = {}
        if asks:
            return Plan(asks)
        hinted = set(batch.group[batch["hint"] > 0].tolist())
        for group in failed_groups(batch):
            if group not in self._seen | hinted and step.groups[group] is not None:
                asks.append(Ask(self.hints, group=group, note=(WRITING, ""), aside=True, writer=self.writer))
        self._seen |= set(batch.group.tolist())
        return Plan(asks) if asks else None

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        kind, text = ask.note
        if kind == TRYING:
            return with_text(prompt, filled(self.show, "hill", hint=text), "hint")
        solution = first_text(prompt, self.column)
        if solution is None or rows is None:
            return None
        attempt = str(rows.outputs[0]).strip() or "(nothing)"
        return with_text(prompt, filled(self.write, "hill", attempt=attempt, solution=solution), "write")

    def usable(self, ask: Ask, prompt: Prompt, texts: list[str]) -> list[str]:
        """Hints that say something, and not the answer."""
        return [text.strip() for text in texts if text.strip() and not tells(text, prompt, self.answer)]

    def heard(self, ask: Ask, texts: list[str]) -> None:
        assert ask.group is not None
        if texts:
            self._written[ask.group] = texts
