"""Past answers as examples for the next ones, those first that improved most on what they were shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.objective.groups import representatives
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.selection.likeness import nearest
from mmrl.stages import LANGUAGE, stage

EXAMPLES = "Earlier answers, and what each was worth:\n\n{examples}\n\nGive a better one."


@dataclass(frozen=True)
class Exemplar:
    """An answer, its reward, and by how much that is above the mean reward of what it was shown; of an answer that was
    shown nothing, above its group's mean."""

    text: str
    reward: float
    gain: float


def prioritised(exemplars: Sequence[Exemplar], count: int, power: float, key: Key) -> list[int]:
    """Places of `count` exemplars: the best one, and others drawn without replacement by 1 / rank(gain)^power.

    The lowest rank, 1, is the largest gain; among equals the earlier. Rank-based priorities of experience replay.
    """
    places = sorted(range(len(exemplars)), key=lambda i: (-exemplars[i].reward, i))
    chosen, left = places[:1], sorted(places[1:], key=lambda i: (-exemplars[i].gain, i))
    weights = [(1 + rank) ** -power for rank in range(len(left))]
    draws = key.uniform(max(count, 1)).tolist()
    while left and len(chosen) < count:
        total, at = sum(weights), 0
        aim, mass = draws[len(chosen)] * total, weights[0]
        while mass <= aim and at < len(left) - 1:
            at += 1
            mass += weights[at]
        chosen.append(left.pop(at))
        weights.pop(at)
    return chosen


@stage(
    "rollout",
    "contextevolve",
    paper="ContextEvolve: multi-agent context compression, arXiv 2602.02597",
    formula="y ~ pi(. | q, E), E the best known answer and others by 1 / rank(gain)^power; gain = r(y) - mean r(E)",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
class ContextEvolve(Strategy):
    """A prompt that comes again is shown what was answered to it before, as text; nothing else is learned.

    count     examples of a prompt
    size      answers that are remembered of a prompt, the best
    memory    prompts that are remembered, the latest
    power     how much more the largest gains are drawn: 0 draws all alike
    across    for a prompt without answers of its own, prompts whose words are most alike lend theirs; 0: none do
    template  what is put behind the user's words, {examples} in it

    Of each group its best answer is remembered, unless it is known. Rollouts that saw examples train under them, where
    anything trains: the recipe's learner is `frozen`. The memory is the same on all ranks, is saved with checkpoints,
    and every draw is keyed, so a run goes on after a resume as if it had never stopped. Source: abstract; there a
    model writes summaries of answers and directions too, and chooses the examples; the ranks are ours.
    """

    origins = (OWN, SHOWN)
    columns = {"examples": 0.0}
    reads_texts = True

    def __init__(
        self, *, count: int = 3, size: int = 16, memory: int = 4096, power: float = 0.7, across: int = 0,
        template: str = EXAMPLES,
    ) -> None:  # fmt: skip
        if min(count, size, memory) < 1 or power < 0 or across < 0:
            raise ConfigError(
                f"rollout 'contextevolve': count={count}, size={size}, memory={memory}, power={power}, "
                f"across={across}; expected 1 or more of the first three, and nothing below 0"
            )
        filled(template, "rollout 'contextevolve'", examples="")
        self.count, self.size, self.memory, self.power, self.across = count, size, memory, power, across
        self.template = template
        self.known: dict[str, list[Exemplar]] = {}
        self._prompts: Sequence[Prompt] = ()
        self._seen: dict[str, float] = {}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def examples(self, question: str, key: Key) -> list[Exemplar]:
        """What a prompt is shown, the best last; none where nothing is known."""
        others = [] if question in self.known or not self.across else list(self.known)
        asked = [question] if question in self.known else [others[i] for i in nearest(question, others, self.across)]
        found = [exemplar for each in asked for exemplar in self.known[each]]
        return sorted((found[i] for i in prioritised(found, self.count, self.power, key)), key=lambda e: e.reward)

    def ask(self, step: Step) -> Plan | None:
        asks, self._seen = [], {}
        for index in step.draw(step.prompts_per_step):
            question = self._prompts[index].text
            shown = self.examples(question, step.key.at(prompt=question, purpose="contextevolve"))
            if not shown:
                asks.append(Ask(step.group_size, index=index))
                continue
            self._seen[question] = sum(e.reward for e in shown) / len(shown)
            note, columns = tuple(astuple(e) for e in shown), {"examples": float(len(shown))}
            asks.append(Ask(step.group_size, index=index, note=note, trains="shown", columns=columns))
        return Plan(asks)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        written = "\n\n".join(f"[{reward:g}]\n{text}" for text, reward, _ in ask.note)
        return with_text(prompt, filled(self.template, "contextevolve", examples=written), "examples")

    def observe(self, batch: Batch, step: Step) -> None:
        scored = batch.counted & ~batch.reward.isnan()
        for row in representatives(batch.group).tolist():
            group = int(batch.group[row])
            at = ((batch.group == group) & scored).nonzero().squeeze(1)
            if not len(at) or group not in step.asked:
                continue
            question, rewards = step.asked[group], batch.reward[at].double()
            best = int(torch.argmax(rewards))
            text = step.texts.get((group, int(batch.member[at[best]])))
            if text is None or not text.strip():
                continue
            top = float(rewards[best])
            self._remember(question, Exemplar(text, top, top - self._seen.get(question, float(rewards.mean()))))

    def _remember(self, question: str, exemplar: Exemplar) -> None:
        answers = self.known.pop(question, [])
        if all(exemplar.text != known.text for known in answers):
            answers = sorted([*answers, exemplar], key=lambda e: -e.reward)[: self.size]
        self.known[question] = answers
        while len(self.known) > self.memory:
            del self.known[next(iter(self.known))]

    def state_dict(self) -> dict[str, Any]:
        return {"known": [[question, [list(astuple(e)) for e in answers]] for question, answers in self.known.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.known = {question: [Exemplar(*e) for e in answers] for question, answers in state.get("known", [])}
