"""A right and a wrong attempt side by side teach the policy to write a better one, which it then learns unprompted."""

from __future__ import annotations

from collections import Counter

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, with_text, worth
from mmrl.rollout.origins import HINTED
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

COMPARE = (
    "Two attempts at this.\nThe first is right:\n{right}\n\nThe second is wrong:\n{wrong}\n\nAnswer it yourself, "
    "step by step, and say on the way how the mistake of the second is avoided."
)


@stage(
    "rollout",
    "ssb",
    paper="SSB: semantic soft bootstrapping, arXiv 2512.05105; code purbeshmitra/semantic-soft-bootstrapping",
    formula="where a group has right and wrong members: y ~ pi(. | q, right, wrong), kept if right; the loss is "
    "-lp(y | q), the single-sample form of KL(pi(. | q, right, wrong) || pi(. | q))",
    confidence="partly",
    modalities=LANGUAGE,
)
class Ssb(Strategy):
    """Mixed groups write a solution knowing a right and a wrong attempt; the bare prompt learns it, and nothing else.

    count     solutions of a mixed group
    template  what is put behind the user's words, {right} and {wrong} in it

    Column `expert (B,)` is 1 on solutions. Those that are right train under the bare prompt, through a regularizer
    with `rows: expert`; the attempts themselves neither count nor train, so there is no reward in the loss. The right
    attempt shown is the shortest, the wrong one the most frequent, the first among equals. Source: the authors' code
    (logit_gen.py, ssb_train.py).
    """

    origins = (HINTED,)
    columns = {"expert": 0.0}

    def __init__(self, *, count: int = 1, template: str = COMPARE) -> None:
        if count < 1:
            raise ConfigError(f"rollout 'ssb': count={count}; expected at least 1")
        filled(template, "rollout 'ssb'", right="", wrong="")
        self.count, self.template = count, template
        self._tried: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._tried = set()
        expert, value = batch["expert"] > 0, worth(batch)
        own = ~expert & batch.counted
        right = set(batch.group[own & (value > 0.5)].tolist())
        mixed = sorted(right & set(batch.group[own & (value <= 0.5)].tolist()) - self._tried)
        self._tried |= set(mixed)
        asks = [Ask(self.count, group=g, note="compare", columns={"expert": 1.0}) for g in mixed]
        return Plan(asks, counted=~expert, trained=expert & (value > 0.5))

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        assert rows is not None
        value = worth(rows).tolist()
        attempts = [(str(text).strip(), v) for text, v in zip(rows.outputs, value, strict=True)]
        right = sorted((text for text, v in attempts if v > 0.5 and text), key=len)
        wrong = Counter(text for text, v in attempts if v <= 0.5 and text).most_common(1)
        if not right or not wrong:
            return None
        return with_text(prompt, filled(self.template, "ssb", right=right[0], wrong=wrong[0][0]), "compared")
