"""What was done in each kind of observation, and what it came to, kept and told where that kind comes again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from mmrl.columns import columns
from mmrl.errors import ConfigError
from mmrl.objective.groups import group_mean
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.environments.experienced import EXPERIENCES, cluster_of
from mmrl.rollout.hints import with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

WENT_WELL, WENT_BADLY = "What went well in such a place:", "What went badly in such a place:"


@dataclass(frozen=True)
class Experience:
    """What was written there, and by how much the reward of that rollout was above its group's mean."""

    text: str
    score: float


@stage(
    "rollout",
    "slea_rl",
    paper="SLEA-RL: step-level experience augmented RL, arXiv 2603.18079",
    formula="library[c] <- the turns in cluster c with |r - mean_g| > least, `rate` a step; turns in c see its best "
    "and worst",
    confidence="reconstructed",
    needs=lambda **_: columns("cluster"),
    modalities=LANGUAGE,
)
class SleaRl(Strategy):
    """A library of turns by the kind of observation they answer, which prompts and observations of that kind show.

    keep      experiences of a cluster, half of them good ones; the strongest stay
    rate      new ones of a cluster in a step
    least     by how much a rollout's reward must differ from its group's mean for its turns to be remembered
    clusters  that are remembered, the latest
    words     of an experience; a longer turn is cut there

    The library goes to environment `slea_rl` with the prompts, which puts what it has behind the observations; what it
    has of the prompt's own kind stands behind the prompt. Rollouts train under what they saw. The library is the same
    on all ranks, depends on nothing but the rollouts, and is saved, so a run goes on after a resume as if it had never
    stopped. Source: abstract: there a model distils experiences into words, here they are the policy's own turns;
    admission by the group's mean is ours.
    """

    origins = (OWN, SHOWN)
    reads_turns = True

    def __init__(
        self, *, keep: int = 4, rate: int = 1, least: float = 0.1, clusters: int = 256, words: int = 48
    ) -> None:  # fmt: skip
        if min(keep, rate, clusters, words) < 1 or keep % 2 or least < 0:
            raise ConfigError(
                f"rollout 'slea_rl': keep={keep}, rate={rate}, least={least}, clusters={clusters}, words={words}; "
                "expected an even number to keep, 0 or more for least, and 1 or more of the others"
            )
        self.keep, self.rate, self.least, self.clusters, self.words = keep, rate, least, clusters, words
        self.library: dict[int, list[Experience]] = {}

    def told(self) -> dict[str, str]:
        """{cluster: what is shown of it}"""
        return {str(cluster): _listed(found) for cluster, found in self.library.items()}

    def ask(self, step: Step) -> Plan | None:
        kind: Any = {"note": tuple(self.told().items()), "trains": "shown"} if self.library else {}
        return Plan([Ask(step.group_size, index=i, **kind) for i in step.draw(step.prompts_per_step)])

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        known = dict(ask.note)
        own = known.get(str(cluster_of(prompt.text)))
        digest = hashlib.blake2b(repr(ask.note).encode(), digest_size=6).hexdigest()
        told = with_text(prompt, own, "experience") if own else replace(prompt, beside={"bare": prompt})
        return replace(told, id=f"{prompt.id}+experiences:{digest}", columns={**prompt.columns, EXPERIENCES: known})

    def observe(self, batch: Batch, step: Step) -> None:
        scored = batch.counted & ~batch.reward.isnan()
        apart = (batch.reward - group_mean(batch.reward.nan_to_num(0), batch.group, scored)).double()
        new: dict[int, list[Experience]] = {}
        for row in (scored & (apart.abs() > self.least)).nonzero().squeeze(1).tolist():
            said = step.turns.get((int(batch.group[row]), int(batch.member[row])), [])
            for run, text in enumerate(said):
                if (cluster := _cluster(batch, row, run)) > 0 and text.strip():
                    short = " ".join(text.split()[: self.words])
                    new.setdefault(cluster, []).append(Experience(short, float(apart[row])))
        for cluster, found in new.items():
            self._admit(cluster, found)
        while len(self.library) > self.clusters:
            del self.library[next(iter(self.library))]

    def _admit(self, cluster: int, found: Sequence[Experience]) -> None:
        """The strongest new ones join, and the strongest of each sign stay."""
        known = self.library.pop(cluster, [])
        texts = {e.text for e in known}
        fresh = [e for e in sorted(found, key=lambda e: -abs(e.score)) if e.text not in texts][: self.rate]
        every, half = [*known, *fresh], self.keep // 2
        good = sorted((e for e in every if e.score > 0), key=lambda e: -e.score)[:half]
        self.library[cluster] = good + sorted((e for e in every if e.score < 0), key=lambda e: e.score)[:half]

    def counted(self) -> dict[str, float]:
        return {"clusters": len(self.library), "experiences": sum(map(len, self.library.values()))}

    def state_dict(self) -> dict[str, Any]:
        return {"library": [[c, [list(astuple(e)) for e in found]] for c, found in self.library.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.library = {c: [Experience(*e) for e in found] for c, found in state.get("library", [])}


def _cluster(batch: Batch, row: int, run: int) -> int:
    """What the run of a row acts in; -1 where it wrote nothing, or its turn was cut before it was heard."""
    inside = batch.mask[row] & (batch["turn"][row] == run)
    return int(batch["cluster"][row][inside][0]) if bool(inside.any()) else -1


def _listed(found: Sequence[Experience]) -> str:
    parts = []
    for head, sign in ((WENT_WELL, 1), (WENT_BADLY, -1)):
        lines = [f"- {e.text}" for e in found if e.score * sign > 0]
        parts += [head, *lines] if lines else []
    return "\n".join(parts)
