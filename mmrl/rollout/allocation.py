"""More rollouts where they tell most: XRPO's allocator."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_count, group_std, representatives
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.examples import Examples
from mmrl.rollout.hints import failed_groups, filled, with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

EXAMPLES = "Examples of questions like this one, with right answers:\n\n{examples}\n\nNow answer the question above."


@cache
def _quantile(freedom: int, level: float) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, freedom))


def half_width(std: float, count: int, level: float = 0.05) -> float:
    """Of the confidence interval of a group's mean reward: t_{1 - level/2, n - 1} std / sqrt(n), n at least 2."""
    return _quantile(count - 1, level) * std / math.sqrt(count)


def allocate(counts: list[int], stds: list[float], extra: int, level: float = 0.05, explore: float = 1.0) -> list[int]:
    """How many of `extra` rollouts each prompt gets: one at a time, where it narrows most or where few were made."""
    made, total = [max(n, 2) for n in counts], sum(counts)
    given = [0] * len(counts)

    def narrower(i: int) -> float:
        return half_width(stds[i], made[i], level) - half_width(stds[i], made[i] + 1, level)

    gains = [narrower(i) for i in range(len(counts))]
    for _ in range(extra if counts else 0):
        bonus = explore * math.sqrt(math.log1p(total))
        best = max(range(len(counts)), key=lambda i: gains[i] + bonus / math.sqrt(made[i]))
        given[best], made[best], total = given[best] + 1, made[best] + 1, total + 1
        gains[best] = narrower(best)
    return given


@stage(
    "rollout",
    "xrpo_allocator",
    method="xrpo",
    paper="XRPO, arXiv 2510.06672",
    formula="the next rollout to argmax h(n) - h(n+1) + lambda sqrt(log(1+T)/n), h(n) = t_{1-a/2,n-1} std / sqrt(n)",
    confidence="partly",
    modalities=LANGUAGE,
)
class Allocator(Strategy):
    """More rollouts for prompts whose mean reward is least known; groups become unequal.

    average   rollouts of a prompt in the mean, once all are given: `group_size` is what each starts with
    level     of the confidence interval
    explore   lambda: keeps prompts alive whose rollouts all scored the same
    rounds    R: the first, and in how many more the rest is given, each time by what is known by then
    seeds     K: solved prompts shown to those that nobody solved; 0: none
    memory    solved prompts that are remembered
    template  what is put behind the user's words, {examples} in it

    Seeded rollouts train under what they saw. Examples are the policy's own right answers to the prompts whose words
    are most alike; pictures are not shown with them. Source: abstract and a third-party implementation; level, lambda
    and likeness are ours.
    """

    origins = (OWN, SHOWN)
    reads_texts = True

    def __init__(
        self, *, average: int = 16, level: float = 0.05, explore: float = 1.0, rounds: int = 2, seeds: int = 0,
        memory: int = 256, template: str = EXAMPLES,
    ) -> None:  # fmt: skip
        if rounds < 2 or seeds < 0:
            raise ConfigError(f"rollout 'xrpo_allocator': rounds={rounds}, seeds={seeds}; expected 2 and 0 or more")
        filled(template, "rollout 'xrpo_allocator'", examples="")
        self.average, self.level, self.explore, self.rounds = average, level, explore, rounds
        self.seeds, self.template, self.examples = seeds, template, Examples(memory)
        self.reads_texts = seeds > 0
        self._asked: dict[int, int] = {}

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._asked = {}
        scored = batch.counted & ~torch.isnan(batch.reward)
        rows = representatives(batch.group)
        groups, counts = batch.group[rows].tolist(), group_count(batch.group)[rows].tolist()
        counts = [max(n, self._asked.get(g, 0)) for g, n in zip(groups, counts, strict=True)]
        missing = max(self.average * len(rows) - sum(counts), 0)
        share = -(-missing // max(self.rounds - step.round, 1))
        stds = group_std(batch.reward, batch.group, scored)[rows].tolist()
        given = allocate(counts, stds, share, self.level, self.explore)
        self._asked |= {g: n + more for g, n, more in zip(groups, counts, given, strict=True)}
        hopeless = set(failed_groups(batch)) if self.seeds else set()
        asks = [self._ask(g, n, g in hopeless, step) for g, n in zip(groups, given, strict=True) if n]
        return Plan(asks) if asks else None

    def _ask(self, group: int, count: int, hopeless: bool, step: Step) -> Ask:
        if hopeless and self.examples.like(step.asked.get(group, ""), 1):
            return Ask(count, group=group, note="examples", trains="shown")
        return Ask(count, group=group)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        examples = [f"{question}\n{answer}" for question, answer in self.examples.like(prompt.text, self.seeds)]
        text = filled(self.template, "xrpo_allocator", examples="\n\n".join(examples))
        return with_text(prompt, text, "examples") if examples else None

    def observe(self, batch: Batch, step: Step) -> None:
        if self.seeds:
            self.examples.learn(batch, step)

    def state_dict(self) -> dict[str, Any]:
        return {"examples": self.examples.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.examples.load(state.get("examples", []))
