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
    memory    rows of the data set that are remembered, the latest
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
        self.known: dict[int, list[Exemplar]] = {}
        self.questions: dict[int, str] = {}
        self._prompts: Sequence[Prompt] = ()
        self._seen: dict[tuple[int, int], float] = {}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def examples(self, row: int, key: Key) -> list[Exemplar]:
        """What a row of the data set is shown, the best last; none where nothing is known."""
        asked = [row] if row in self.known else self._alike(row) if self.across else []
        found = [exemplar for each in asked for exemplar in self.known[each]]
        return sorted((found[i] for i in prioritised(found, self.count, self.power, key)), key=lambda e: e.reward)

    def _alike(self, row: int) -> list[int]:
        known = list(self.known)
        return [known[i] for i in nearest(self._prompts[row].text, (self.questions[k] for k in known), self.across)]

    def ask(self, step: Step) -> Plan | None:
        asks = []
        for index in step.draw(step.prompts_per_step):
            shown = self.examples(index, step.key.at(member=index, purpose="contextevolve"))
            if not shown:
                asks.append(Ask(step.group_size, index=index))
                continue
            self._seen[step.number, index] = sum(e.reward for e in shown) / len(shown)
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
            at, index = ((batch.group == group) & scored).nonzero().squeeze(1), step.groups[group]
            if not len(at) or index is None:
                continue
            rewards = batch.reward[at].double()
            best = int(torch.argmax(rewards))
            text = step.texts.get((group, int(batch.member[at[best]])))
            if text is None or not text.strip():
                continue
            top = float(rewards[best])
            before = self._seen.get((step.number, index), float(rewards.mean()))
            self._remember(index, Exemplar(text, top, top - before))
            self.questions[index] = step.asked[group]
        self._seen = {at: mean for at, mean in self._seen.items() if at[0] > step.number}  # of steps begun ahead

    def counted(self) -> dict[str, float]:
        return {"prompts": len(self.known), "answers": sum(map(len, self.known.values()))}

    def _remember(self, row: int, exemplar: Exemplar) -> None:
        answers = self.known.pop(row, [])
        if all(exemplar.text != known.text for known in answers):
            answers = sorted([*answers, exemplar], key=lambda e: -e.reward)[: self.size]
        self.known[row] = answers
        while len(self.known) > self.memory:
            oldest = next(iter(self.known))
            del self.known[oldest], self.questions[oldest]

    def state_dict(self) -> dict[str, Any]:
        known = [[row, self.questions[row], [list(astuple(e)) for e in each]] for row, each in self.known.items()]
        return {"known": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.known = {row: [Exemplar(*e) for e in each] for row, _, each in state["known"]}
        self.questions = {row: question for row, question, _ in state["known"]}
