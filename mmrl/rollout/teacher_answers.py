"""The teacher answers, and the policy learns its answers: a warm-up before anything is sampled and judged."""

from __future__ import annotations

from dataclasses import replace

from mmrl.errors import ConfigError
from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.origins import OWN, brought
from mmrl.rollout.plan import Ask, Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "teacher_answers",
    paper="Sparse-to-dense reward, arXiv 2605.12483: the forward-KL warm-up on teacher rollouts",
    formula="y ~ pi_T(. | q); the loss is -lp(y | q), the single-sample form of KL(pi_T || pi)",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
class TeacherAnswers(Strategy):
    """Each prompt of a step is answered by `policy.teacher`, and those answers alone train.

    count  answers of the teacher to a prompt

    An answer that was cut at `policy.max_new_tokens` is left out, and counted. Column `expert (B,)` is 1 on the
    teacher's answers: pair it with regularizer `nll` and `rows: expert`. A group is opened by one answer of the policy,
    which does not train. Source: the abstract; the authors' is cross-entropy on the teacher's logits.
    """

    origins = (OWN, brought("demonstration"))
    columns = {"expert": 0.0}
    writer = "teacher"

    def __init__(self, *, count: int = 1) -> None:
        if count < 1:
            raise ConfigError(f"rollout 'teacher_answers': count={count}; expected at least 1")
        self.count = count
        self._written: dict[int, list[str]] = {}

    def ask(self, step: Step) -> Plan | None:
        self._written = {}
        return Plan([Ask(1, index=index) for index in step.draw(step.prompts_per_step)])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        expert = batch["expert"] > 0
        asks: list[Ask] = []
        given: list[Given] = []
        if step.round == 1:
            asks = [
                Ask(self.count, group=g, note="asked", aside=True, whole=True, writer="teacher")
                for g in sorted(set(batch.group.tolist()))
            ]
        else:
            given = [Given("demonstration", group=g, note=tuple(texts), columns={"expert": 1.0})
                     for g, texts in sorted(self._written.items())]  # fmt: skip
            self._written = {}
        return Plan(asks, given, counted=~expert, trained=expert)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        return replace(prompt, id=f"{prompt.id}+teacher", beside={"bare": prompt})

    def heard(self, ask: Ask, texts: list[str]) -> None:
        assert ask.group is not None
        if texts:
            self._written[ask.group] = texts

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        return list(given.note)
