"""Groups that taught something, kept and shown again in the place of groups that teach nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_count, group_std
from mmrl.objective.numerics import safe_exp
from mmrl.record import SOURCES, Answer, Batch, Prompt, Rollouts
from mmrl.rollout.origins import brought
from mmrl.rollout.plan import Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

REPLAY = SOURCES.index("replay")


@dataclass
class Kept:
    """One group: its row of the data set, the step that made it, its worth, and its answers with their log-probs."""

    row: int
    step: int
    score: float
    ids: list[list[int]]
    log_probs: list[list[float]]


def effective_size(weights: Tensor) -> float:
    """(sum w)^2 / sum w^2: how many equal weights `weights (n,)` are worth."""
    return float(weights.sum() ** 2 / (weights**2).sum().clamp(min=1e-300))


@stage(
    "rollout",
    "replay",
    paper="group replay; TRL, grpo_with_replay_buffer",
    formula="keep the `size` groups of the largest mean|A| std(r); for each group of equal rewards one drawn in "
    "proportion to it, with its log-probs; none older than `age` steps or of an effective size below `least`",
    confidence="partly",
    modalities=LANGUAGE,
)
class Replay(Strategy):
    """Old groups that were informative take the places of new ones that are not.

    size   groups that are kept; more remember longer
    age    optimizer batches after which a group is forgotten: the ratio corrects for the policy that sampled it, worse
           the older it is
    least  of a group's members, the share its importance weights must be worth; a group below trains no more

    Rows are of source "replay", scored anew, and the ratio's denominator is what they were sampled with. Only groups of
    the policy's own fresh samples are kept: no hinted, given or branching rows. The buffer is the same on all ranks and
    goes on after a resume. Source: heap and proportional draw as in TRL; age and effective size are ours.
    """

    origins = (brought("replay", "given"),)
    columns = {"age": 0.0}

    def __init__(self, *, size: int = 64, age: int = 8, least: float = 0.5) -> None:
        if size < 1 or age < 1 or not 0 <= least <= 1:
            raise ConfigError(
                f"rollout 'replay': size={size}, age={age}, least={least}; expected at least 1, at least 1, and [0, 1]"
            )
        self.size, self.age, self.least = size, age, least
        self.kept: list[Kept] = []
        self._asked: dict[int, Kept] = {}

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._asked = {}
            self.kept = [k for k in self.kept if step.number - k.step <= self.age]
        replayed = batch.source == REPLAY
        keep = self._worth_their_weight(batch, replayed)
        flat = self._flat(batch, batch.counted & ~replayed)
        given: list[Given] = []
        for kept in self._drawn(len(flat) - len(self._asked), step):
            group = len(step.groups) + len(given)
            self._asked[group] = kept
            age = float(step.number - kept.step)
            given.append(Given("replay", "given", index=kept.row, note=group, columns={"age": age}))
        return Plan(given=given, counted=keep, trained=keep)

    @staticmethod
    def _flat(batch: Batch, counted: Tensor) -> set[int]:
        """Groups whose rewards are all alike."""
        spread = group_std(batch.reward, batch.group, counted)
        alive = group_count(batch.group, counted & ~batch.reward.isnan()) > 0
        return set(batch.group[alive & (spread < 1e-6) & counted].tolist())

    def _drawn(self, count: int, step: Step) -> list[Kept]:
        """Different groups, each drawn in proportion to its worth; fewer where fewer are kept."""
        left = [k for k in self.kept if not any(k is asked for asked in self._asked.values())]
        draw = step.key.at(member=step.round, purpose="replay").generator()
        drawn = []
        for _ in range(min(count, len(left))):
            at = int(torch.multinomial(torch.tensor([k.score for k in left], dtype=torch.float64), 1, generator=draw))
            drawn.append(left.pop(at))
        return drawn

    def _worth_their_weight(self, batch: Batch, replayed: Tensor) -> Tensor:
        """(B,) bool: all rows but replayed groups that the policy has moved too far from; those are forgotten."""
        keep = torch.ones_like(replayed)
        for group in torch.unique(batch.group[replayed]).tolist():
            rows = (batch.group == group) & replayed
            apart = ((batch.old_log_probs - batch["behaviour_log_probs"]) * batch.mask).double().sum(1)[rows]
            if effective_size(safe_exp(apart - apart.max())) < self.least * int(rows.sum()):
                keep[rows] = False
                gone = self._asked.get(group)
                self.kept = [k for k in self.kept if k is not gone]
        return keep

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        kept = self._asked[given.note]
        pairs = zip(kept.ids, kept.log_probs, strict=True)
        return [Answer(torch.tensor(ids), torch.tensor(log_probs)) for ids, log_probs in pairs]

    def observe(self, batch: Batch, step: Step) -> None:
        """Keep the groups of this step that are worth more than what is kept."""
        own = ~batch.helped & ((batch.owner == batch.member[:, None]) | ~batch.mask).all(1)
        spread = group_std(batch.reward, batch.group, batch.counted, ddof=0)
        for group in sorted(set(batch.group.tolist())):
            rows = ((batch.group == group) & batch.counted & batch.trained).nonzero().squeeze(1)
            row = step.groups[group]
            if row is None or len(rows) < 2 or not own[rows].all() or not spread[rows[0]] > 1e-6:
                continue
            reward = batch.reward[rows]
            score = float((reward - reward.mean()).abs().mean())  # mean |A| std, A standardised
            lengths = batch.length[rows].tolist()
            ids = [batch.actions[r, :n].tolist() for r, n in zip(rows.tolist(), lengths, strict=True)]
            old = [batch.old_log_probs[r, :n].tolist() for r, n in zip(rows.tolist(), lengths, strict=True)]
            self.kept.append(Kept(row, step.number, score, ids, old))
        self.kept = sorted(self.kept, key=lambda k: -k.score)[: self.size]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [vars(k) for k in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = [Kept(**k) for k in state["kept"]]
