"""Rollouts by what a prompt's success is expected to be, before it is tried: V_0's budget."""

from __future__ import annotations

from typing import Any

from mmrl.errors import ConfigError
from mmrl.objective.groups import representatives
from mmrl.record import Batch
from mmrl.rollout.hints import worth
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.selection.likeness import likeness
from mmrl.stages import LANGUAGE, stage

LOW, HIGH = 0.02, 0.98


def utility(count: int, success: float) -> float:
    """How much gradient `count` rollouts of a prompt are expected to give: B (1 - p) [1 - (1 - p)^(B - 1)]."""
    return count * (1 - success) * (1 - (1 - success) ** (count - 1))


def spend(success: list[float], total: int, least: int, most: int, ahead: int = 1) -> list[int]:
    """Rollouts of each prompt, `total` together: `least` each, then one at a time where `ahead` more gain most a piece.

    The utility bends upwards for few rollouts of hard prompts, so that looking one ahead starves them.
    """
    counts = [least] * len(success)

    def gain(i: int) -> float:
        further = min(ahead, most - counts[i])
        return (utility(counts[i] + further, success[i]) - utility(counts[i], success[i])) / further

    for _ in range(total - sum(counts)):
        open_ones = [i for i in range(len(counts)) if counts[i] < most]
        if not open_ones:
            break
        counts[max(open_ones, key=lambda i: (gain(i), -i))] += 1
    return counts


def expected(question: str, context: list[tuple[str, float, int]], sharpness: float, prior: float) -> float:
    """The success rate of `question` by those of `context`, [(question, right, of)], weighed by likeness^sharpness."""
    right, count = prior / 2, prior
    for other, good, tried in context:
        weight = likeness(question, other) ** sharpness
        right, count = right + weight * good, count + weight * tried
    return min(max(right / count, LOW), HIGH)


@stage(
    "rollout",
    "v_0",
    paper="V_0: a generalist value at state zero, arXiv 2602.03584",
    formula="the next rollout to argmax U(B+1, p) - U(B, p), U = B (1-p) [1 - (1-p)^(B-1)], p expected before rollout",
    confidence="partly",
    modalities=LANGUAGE,
)
class Foresight(Strategy):
    """A step's rollouts go where they are expected to make gradient; groups become unequal.

    least, most  rollouts of a prompt; the sum is that of `group_size` each
    ahead        how many rollouts ahead the gain is taken: more reach hard prompts
    context      groups that are remembered, the latest
    sharpness    power of the likeness of two questions that weighs one's outcome for the other
    prior        answers that an even guess is worth

    The expectation is a mean of the policy's latest outcomes over questions of like words; pictures are not looked at,
    and nothing is trained. Source: a detailed secondary write-up for utility, budget and the length of the context;
    the paper's predictor is a trained head on embeddings.
    """

    origins = (OWN,)
    reads_texts = True

    def __init__(
        self, *, least: int = 2, most: int = 32, ahead: int = 2, context: int = 256, sharpness: float = 4.0,
        prior: float = 2.0,
    ) -> None:  # fmt: skip
        if not 2 <= least <= most or ahead < 1 or prior <= 0:
            raise ConfigError(
                f"rollout 'v_0': least={least}, most={most}, ahead={ahead}, prior={prior}; expected 2 <= least <= "
                "most, 1 or more, and above 0"
            )
        self.least, self.most, self.ahead, self.size = least, most, ahead, context
        self.sharpness, self.prior = sharpness, prior
        self.context: list[tuple[str, float, int]] = []
        self._spent = False

    def ask(self, step: Step) -> Plan | None:
        if step.group_size < self.least:
            raise ConfigError(f"rollout 'v_0': least={self.least} of training.group_size={step.group_size}")
        self._spent = False
        return Plan([Ask(self.least, index=i) for i in step.draw(step.prompts_per_step)])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if self._spent:
            return None
        self._spent = True
        groups = sorted(set(batch.group.tolist()))
        hopes = [expected(step.asked[g], self.context, self.sharpness, self.prior) for g in groups]
        counts = spend(hopes, step.group_size * len(groups), self.least, self.most, self.ahead)
        asks = [Ask(n - self.least, group=g) for g, n in zip(groups, counts, strict=True) if n > self.least]
        return Plan(asks) if asks else None

    def observe(self, batch: Batch, step: Step) -> None:
        value = worth(batch)
        scored = batch.counted & ~value.isnan() & ~batch.helped
        for row in representatives(batch.group).tolist():
            group = int(batch.group[row])
            seen = value[scored & (batch.group == group)].clamp(0, 1)
            if len(seen) and group in step.asked:
                self.context.append((step.asked[group], float(seen.sum()), len(seen)))
        self.context = self.context[-self.size :]

    def state_dict(self) -> dict[str, Any]:
        return {"context": [list(each) for each in self.context]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.context = [(question, right, int(of)) for question, right, of in state["context"]]
