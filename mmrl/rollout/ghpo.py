"""Failed groups see the beginning of a reference solution, more of it each time."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, first_text, latest, with_text
from mmrl.rollout.origins import SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

BEGINNING = "The solution begins like this, and you may go on from it:\n{hint}"


def beginning(text: str, share: float) -> str:
    """The first `share` of the characters, rounded as the release does: half to even."""
    return text[: round(len(text) * share)]


@stage(
    "rollout",
    "ghpo",
    paper="GHPO: guided hybrid policy optimization, arXiv 2507.10628",
    formula="while none of a group is right: ask the whole group again with the first w of the solution in the prompt, "
    "w = 1/4, 1/2, 3/4; only the last try trains, under the prompt that it saw",
    modalities=LANGUAGE,
    confidence="partly",
)
class Ghpo(Strategy):
    """Ground-truth prefixes for groups that fail, and for no others.

    column    of the data set: the worked solution, a text (or several, of which the first is shown)
    shares    of its characters, one more try each; more and finer shares help less at once and cost more rollouts
    start     the first step with hints; before it, groups stay as they are
    template  what is put behind the user's words, {hint} in it

    Column `hint (B,)` is the number of the try, 0 for none. Rows without a solution keep their failed group. Source:
    hkgc-1/GHPO, ghpo_trainer.py, whose test of failure is the first reward; here it is success.
    """

    origins = (SHOWN,)
    columns = {"hint": 0.0}

    def __init__(
        self,
        *,
        column: str = "demonstrations",
        shares: tuple[float, ...] = (0.25, 0.5, 0.75),
        start: int = 0,
        template: str = BEGINNING,
    ) -> None:
        if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
            raise ConfigError(f"rollout 'ghpo': `shares` are rising numbers in (0, 1], got {list(shares)}")
        filled(template, "rollout 'ghpo'", hint="")
        self.column, self.shares, self.start, self.template = column, tuple(shares), start, template
        self.data_columns = (column,)
        self._tried: dict[int, int] = {}

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """The next share for each group whose last try failed; the tries before it leave baseline and loss."""
        if step.round == 1:
            self._tried = {}
        if step.number < self.start:
            return None
        keep = latest(batch, "hint")
        failed = failed_groups(batch.index(keep.nonzero().squeeze(1)))
        again = [g for g in failed if self._tried.get(g, 0) < len(self.shares)]
        asks = []
        for group in again:
            place = self._tried.get(group, 0)
            self._tried[group] = place + 1
            hint = {"hint": place + 1.0}
            asks.append(Ask(step.group_size, group=group, note=self.shares[place], trains="shown", columns=hint))
        return Plan(asks, counted=keep, trained=keep)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        solution = first_text(prompt, self.column)
        if solution is None:
            return None
        return with_text(prompt, filled(self.template, "ghpo", hint=beginning(solution, ask.note)), "hint")
