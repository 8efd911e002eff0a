"""Other words for the same answer: SvS lets the policy vary the prompts that it seldom solves."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, worth
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.rollout.proposing import PROPOSES, SOLVES, Proposal, Proposing, asking, tagged
from mmrl.stages import LANGUAGE, stage

INVITATION = (
    "Here is a right answer to a question that you do not see:\n{answer}\n\nWrite a question whose answer is the same, "
    "between <question> and </question>. Do not tell the answer in it."
)


@stage(
    "rollout",
    "svs",
    paper="SvS: self-play with variational problem synthesis, arXiv 2508.14029",
    formula="of groups with low <= p <= high: q' ~ pi(. | right answer), its answer that of q; o ~ pi(. | q') train, "
    "and q' by shaping `proposals`, kind band",
    confidence="partly",
    modalities=LANGUAGE,
)
class Svs(Proposing):
    """Prompts that are seldom solved get variants, which the policy writes from a right answer and then solves.

    low, high  success of a group whose prompt is varied
    parents    right answers of a group from which variants are written
    proposals  variants of each
    solvers    answers to a variant
    most       prompts of a step that are varied at most, the hardest of them; None: all

    A variant keeps the pictures and the solution of its prompt. The writer sees the pictures, and the answer in the
    policy's words. Source: MasterVito/SvS, ray_trainer.py; the words of the invitation are ours.
    """

    def __init__(
        self, *, low: float = 0.125, high: float = 0.5, parents: int = 1, proposals: int = 4,
        solvers: int | None = None, most: int | None = 2, template: str = INVITATION,
    ) -> None:  # fmt: skip
        super().__init__(proposals=proposals, solvers=solvers)
        if not 0 < low <= high < 1 or parents < 1:
            raise ConfigError(f"rollout 'svs': low={low}, high={high}, parents={parents}; expected 0 < low <= high < 1")
        filled(template, "rollout 'svs'", answer="")
        self.low, self.high, self.parents, self.most, self.template = low, high, parents, most, template

    ask = Strategy.ask
    """The prompts of a step are drawn as ever; variants come of what became of them."""

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._read, self._said = set(), set()
            asks = [
                Ask(self.proposals, index=step.groups[g], note="vary:" + text, trains="shown", columns={PROPOSES: 1.0})
                for g, text in self._sources(batch, step)
            ]
            return Plan(asks) if asks else None
        return super().join(batch, step)

    def _sources(self, batch: Batch, step: Step) -> list[tuple[int, str]]:
        """(group, right answer) from which variants are written, the hardest groups first."""
        value = worth(batch)
        own = batch.counted & ~value.isnan() & ~batch.helped & (batch[SOLVES] < 0)
        rates = {g: float(value[own & (batch.group == g)].mean()) for g in sorted(set(batch.group[own].tolist()))}
        inside = [g for g, p in rates.items() if self.low <= p <= self.high and step.groups[g] is not None]
        chosen = sorted(inside, key=lambda g: (rates[g], g))[: self.most]
        right = own & (value > 0.5)
        members = {g: sorted(batch.member[right & (batch.group == g)].tolist())[: self.parents] for g in chosen}
        return [(g, step.texts[g, m]) for g in chosen for m in members[g] if (g, m) in step.texts]

    def read(self, text: str, seed: str) -> Proposal | None:
        question = tagged(text, "question")
        return None if question is None or question == seed else Proposal(question)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        if isinstance(ask.note, str):
            text = filled(self.template, "svs", answer=ask.note.removeprefix("vary:"))
            return asking(prompt, text, "vary")
        return super().shown(ask, prompt, rows)
