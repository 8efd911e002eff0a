"""Explanations of the right answer, by the policy itself, for prompts it fails."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, with_text
from mmrl.rollout.origins import HINTED
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

EXPLAIN = "The right answer is {answer}. Explain how one finds it, and end with it."


@stage(
    "rollout",
    "expo",
    paper="ExPO: self-explanation, arXiv 2507.02834",
    formula="where none of a group is right: c ~ pi(. | q, a*), which regularizer `nll` imitates under q",
    confidence="partly",
    modalities=LANGUAGE,
)
class Expo(Strategy):
    """Failed groups get explanations that the policy wrote knowing the answer; they stay out of the baseline.

    column    of the data set: the right answer
    count     explanations of a failed group
    until     share of the run after which none is asked for; the paper lets their weight fall to 0
    template  what is put behind the user's words, {answer} in it

    Column `expert (B,)` is 1 on them. Their advantage is 0, so only a regularizer with `rows: expert` moves them, under
    the bare prompt. An explanation that its own reward calls wrong does not train. Source: a detailed secondary
    description; the test of the reward and `until` are ours.
    """

    origins = (HINTED,)
    columns = {"expert": 0.0}

    def __init__(
        self, *, column: str = "solution", count: int = 1, until: float = 0.5, template: str = EXPLAIN
    ) -> None:
        if count < 1 or not 0 < until <= 1:
            raise ConfigError(f"rollout 'expo': count={count}, until={until}; expected at least 1, and (0, 1]")
        filled(template, "rollout 'expo'", answer="")
        self.column, self.count, self.until, self.template = column, count, until, template
        self.data_columns = (column,)
        self._tried: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._tried = set()
        expert = batch["expert"] > 0
        wrong = set(failed_groups(batch.index((~expert).nonzero().squeeze(1))))
        useful = expert & ~(batch.reward.nan_to_num(0) <= 0)
        asks = []
        if step.number < self.until * step.steps:
            new = sorted(wrong - self._tried)
            self._tried |= set(new)
            asks = [Ask(self.count, group=g, note="answer", columns={"expert": 1.0}) for g in new]
        return Plan(asks, counted=~expert, trained=~expert | useful)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        answer = prompt.columns.get(self.column)
        if answer is None or answer == "":
            return None
        return with_text(prompt, filled(self.template, "expo", answer=str(answer)), "answer")
