"""Pairs that people chose from are the groups, and an ensemble of reward models says how sure one can be of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mmrl.errors import ConfigError, DataError
from mmrl.objective.credit.rollouts import component
from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.demonstrations import texts_of
from mmrl.rollout.origins import brought
from mmrl.rollout.plan import Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage
from mmrl.tools import tool

LEAST_SPREAD = 1e-6


@tool(
    "secrets_of_rlhf_ii",
    command="mmrl preferences pairs.jsonl mended.jsonl 'rewards=[{name: A}, {name: B}]'",
    paper="Secrets of RLHF in Large Language Models Part II: Reward Modeling, arXiv 2401.06080",
    formula="strength = mean_m d_m / std_m, d_m = r_m(chosen) - r_m(rejected)",
    confidence="partly",
    modalities=LANGUAGE,
    trains=True,
)
def preference_strength(margins: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) mean u of `margins (M, n)` over M reward models, and (n,) strength u / (std + 1e-6), std over M of M.

    A margin is the reward of the chosen answer less that of the rejected one. Below 0 most of the ensemble would have
    chosen the other; between -1 and 1 its members disagree by more than they prefer. NaN where a model gave none.
    """
    mean = margins.mean(0)
    return mean, mean / (margins.std(0, correction=0) + LEAST_SPREAD)


def ensemble(components: Iterable[str], judges: Sequence[str] | None, asked_by: str) -> list[str]:
    """The components that judge: those named, or every reward's own and none of its parts. Two at least."""
    names = list(judges or (name for name in components if "/" not in name))
    if len(names) < 2:
        raise ConfigError(
            f"{asked_by}: an ensemble is 2 or more reward models, and here are {names}; name another under `rewards`"
        )
    return names


def pair_of(prompt: Prompt, chosen: str, rejected: str) -> tuple[str, str]:
    """The two texts of a row's columns; DataError where one of them is none, or several."""
    pair = []
    for name in (chosen, rejected):
        texts = texts_of(prompt.columns.get(name), f"prompt {prompt.id!r}: column {name!r}")
        if len(texts) != 1:
            raise DataError(
                f"prompt {prompt.id!r}: column {name!r} holds {len(texts)} texts; a pair is one chosen and one "
                "rejected answer"
            )
        pair += texts
    return pair[0], pair[1]


@stage(
    "rollout",
    "preference_pairs",
    method="secrets_of_rlhf_ii",
    paper="Secrets of RLHF in Large Language Models Part II: Reward Modeling, arXiv 2401.06080",
    formula="u = mean_m (r_m(chosen) - r_m(rejected)), strength = u / std_m",
    confidence="partly",
    needs=("components",),
    modalities=LANGUAGE,
)
class PreferencePairs(Strategy):
    """Nothing is sampled: a group is the chosen and the rejected answer of a row of preference data.

    chosen, rejected  columns of the data set. TRL's pairs are read as they are: their `chosen` becomes `solution`
    judges            reward components that are the ensemble, two or more; none: all of the run's, parts aside

    Columns: `preferred (B,)` is 1 on the chosen answer; `preference_margin` and `preference_strength (B,)` are the
    ensemble's mean margin and its strength, with the other sign on the rejected one. `preference/...` in the metrics
    say how many labels the ensemble doubts, `mmrl preferences` the same without training; score objective
    `secrets_of_rlhf_ii` acts on it. A group is 2, whatever `training.group_size` says. Source: a public note with the
    paper's equations (newfacade/notes-on-llm, preference/secret-rm).
    """

    origins = (brought("demonstration"),)
    made = ("preferred", "preference_margin", "preference_strength")

    def __init__(
        self, *, chosen: str = "solution", rejected: str = "rejected", judges: Sequence[str] | None = None
    ) -> None:  # fmt: skip
        if judges is not None and len(set(judges)) < 2:
            raise ConfigError(f"rollout 'preference_pairs': judges={list(judges)}; an ensemble is 2 or more rewards")
        self.chosen, self.rejected, self.judges = chosen, rejected, judges
        self.data_columns = (chosen, rejected)

    def group_members(self, group_size: int) -> int:
        return 2

    def ask(self, step: Step) -> Plan:
        return Plan(given=[Given("demonstration", index=index) for index in step.draw(step.prompts_per_step)])

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        """The chosen text, then the rejected one."""
        return list(pair_of(prompt, self.chosen, self.rejected))

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        names = ensemble(batch.components, self.judges, "rollout 'preference_pairs'")
        scores = torch.stack([component(batch, name, "preference_pairs").to(batch.reward) for name in names])
        chosen = batch.member == 0
        other = _partner(batch)
        margins = torch.where(other >= 0, scores - scores[:, other.clamp(min=0)], torch.nan)
        mean, strength = preference_strength(margins)
        return {"preferred": chosen.to(mean), "preference_margin": mean, "preference_strength": strength}


def _partner(batch: Batch) -> Tensor:
    """(B,) long: the row of the other answer of the pair, -1 where it could not be given."""
    assert batch.group is not None and batch.member is not None
    same = (batch.group[:, None] == batch.group[None, :]) & (batch.member[:, None] != batch.member[None, :])
    return torch.where(same.any(1), same.long().argmax(1), -1)
