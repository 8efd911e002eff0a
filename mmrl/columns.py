"""Every column that stage functions read: its name, its shape, what it means, and who can make it.

A function declares what it reads in `needs`. What a forward pass gives is a `Need` (`mmrl.stages`): the policy makes
it. All else is a `Column` of this table, or one that user code adds to it: `COLUMNS["mine"] = Column(...)`. A run is
refused at the earliest of three moments at which it is known that nobody makes a column: when the configuration is
read, when the data is opened, or after the first rollout, before anything is trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REWARD = "reward"
DATA = "data"
STRATEGY = "strategy"
ENVIRONMENT = "environment"
SEGMENTER = "segmenter"
ENGINE = "engine"
POLICY = "policy"

HOW = {
    REWARD: "a reward that returns it, declared by rewards=[{{name: ..., columns: [{name}]}}]",
    DATA: "the data set, one number a row, declared by data.numbers=[{name}]",
    STRATEGY: "a rollout strategy that asks for such rollouts",
    ENVIRONMENT: "an environment that the policy acts in",
    SEGMENTER: "a reward that cuts answers, such as rewards=[{{name: sentences, weight: 0, columns: [segment]}}]",
    ENGINE: "an engine that reports it",
    POLICY: "a policy that keeps it with its rollouts",
}
"""Each kind of maker, and what one does to have it."""


@dataclass(frozen=True)
class Column:
    """shape    "(B,)" or "(B, T)", of the rollouts
    meaning  one line
    makers   the kinds that can make it; none: it is always there
    fill     what stands where its maker says nothing, and outside the mask
    how      what one does to have it, where that is more than `HOW` says of its makers
    added    numbers of the actions of a segment are added up, so that a maker's number for a segment or a span stands
             on its last action alone; others stand on each of its actions
    """

    name: str
    shape: str
    meaning: str
    makers: tuple[str, ...] = ()
    fill: float = 0.0
    how: str = ""
    added: bool = False

    @property
    def per_action(self) -> bool:
        return self.shape != "(B,)"


def _table(*columns: Column) -> dict[str, Column]:
    return {c.name: c for c in columns}


COLUMNS: dict[str, Column] = _table(
    Column("reward", "(B,)", "the combined reward"),
    Column("success", "(B,)", "1 right, 0 wrong, NaN unknown"),
    Column("components", "(B,)", "the named rewards before they were combined"),
    Column("actions", "(B, T)", "token ids or step indices"),
    Column("prompt", "(B,)", "a number of the prompt's id"),
    Column("segment", "(B, T)", "the number of the turn, step or item an action is part of, -1 for none",
           (ENVIRONMENT, SEGMENTER, REWARD, POLICY), -1),
    Column("kind", "(B, T)", "the kind of an action, a place in mmrl.batch.KINDS, of rows that hold several",
           (POLICY, SEGMENTER, REWARD)),
    Column("turn", "(B, T)", "the run of acting a token belongs to, from 0", (ENVIRONMENT,)),
    Column("calls", "(B,)", "what an environment was asked for", (ENVIRONMENT,)),
    Column("bad_calls", "(B,)", "calls that it could not follow", (ENVIRONMENT,)),
    Column("observed", "(B,)", "columns that it filled", (ENVIRONMENT,)),
    Column("state", "(B, T)", "a number of the state a segment acts in, equal where it is the same",
           (ENVIRONMENT, REWARD), -1),
    Column("cluster", "(B, T)", "a number of the kind of observation a segment acts in, alike but for its numbers",
           (ENVIRONMENT,), -1),
    Column("tag", "(B, T)", "a number of the kind of thinking a segment is tagged with", (ENVIRONMENT, REWARD), -1),
    Column("choice", "(B, T)", "which of the offered next nodes a segment chose", (ENVIRONMENT, REWARD), -1),
    Column("action_reward", "(B, T)", "what the segment of an action is worth, on its last action",
           (REWARD, ENVIRONMENT, STRATEGY), added=True),
    Column("belief", "(B, T)", "a number of the belief a segment states", (ENVIRONMENT, REWARD), -1),
    Column("belief_reward", "(B, T)", "what that belief is worth, on its last action", (REWARD, ENVIRONMENT),
           added=True),
    Column("flagged_tokens", "(B, T)", "1 on tokens that a judge found wrong", (REWARD,)),
    Column("progress", "(B, T)", "how far a task is once the segment of an action is over", (REWARD, ENVIRONMENT)),
    Column("values", "(B, T)", "a critic's value of each macro action", (REWARD, STRATEGY)),
    Column("reference_value", "(B,)", "the mean reward of the reference policy on a rollout's prompt",
           (STRATEGY, DATA, REWARD)),
    Column("expert", "(B,)", "1 on demonstrations in a group of the policy's own rollouts", (STRATEGY,)),
    Column("expert_log_probs", "(B, T)", "log-probs of an expert policy", (STRATEGY,)),
    Column("reordered", "(B,)", "1 on rollouts that saw a clip's frames in another order", (STRATEGY,)),
    Column("proposes", "(B,)", "1 on rollouts that write a prompt", (STRATEGY,)),
    Column("proposal_group", "(B,)", "the group of the proposer whose prompt a rollout answers", (STRATEGY,), -1),
    Column("proposal_member", "(B,)", "the member of that group which wrote it", (STRATEGY,), -1),
    Column("augmented", "(B,)", "how much harder than usual its prompt was, which made it change", (STRATEGY,)),
    Column("inverted", "(B,)", "1 on rollouts that were asked for the options that are wrong", (STRATEGY,)),
    Column("wording", "(B,)", "the number of the wording a rollout saw, -1 for none", (STRATEGY,), -1),
    Column("edit", "(B,)", "1 on rollouts that edit a draft of their group", (STRATEGY,)),
    Column("preferred", "(B,)", "1 on the answer of a pair that people chose", (STRATEGY,)),
    Column("preference_margin", "(B,)", "the mean margin of an ensemble of rewards over the other answer", (STRATEGY,)),
    Column("preference_strength", "(B,)", "that margin over its deviation in the ensemble", (STRATEGY,)),
    Column("hint", "(B,)", "the number of the hint a rollout was sampled under, 0 for none", (STRATEGY,)),
    Column("episode", "(B,)", "the member that began what this rollout goes on with, -1 for itself", (STRATEGY,), -1),
    Column("begins", "(B,)", "the action of its group's text at which a rollout begins", (STRATEGY,)),
    Column("sub", "(B,)", "1 on a sub-agent's rollouts, 2 on malformed ones", (STRATEGY,)),
    Column("node_value", "(B, T)", "the value of the search node an action is part of", (STRATEGY,)),
    Column("answer", "(B,)", "a number of the answer, equal where it is the same, 0 for none", (REWARD,)),
    Column("sampler_log_probs", "(B, T)", "log-probs as the sampling engine computed them", (ENGINE,),
           how="policy.old_log_probs=trainer, which keeps the engine's beside the trainer's own"),
    Column("scored", "(B, T)", "1 on actions that the likelihood surrogate scored", (POLICY,)),
    Column("soft", "(B, T)", "1 on actions that are mixtures of tokens", (ENGINE,)),
    Column("gumbels", "(B, T, K)", "the noise that a mixture of K tokens was drawn with", (ENGINE,)),
)  # fmt: skip


def columns(*names: str) -> dict[str, Column]:
    """Entries of the table, for `needs` that depend on parameters."""
    return {name: COLUMNS[name] for name in names}


def missing(
    read: Mapping[str, Sequence[str]], makers: Mapping[str, str], offered: Mapping[str, Sequence[str]]
) -> list[str]:
    """One line for each column that nobody makes.

    read     {column: its readers}, each "stage 'name'"
    makers   {column: who makes it}, as the run declares them
    offered  {column: rollout strategies that would}
    """
    lines = []
    for name, readers in read.items():
        column = COLUMNS[name]
        if column.makers and name not in makers:
            read_by = f"{' and '.join(readers)} {'read' if len(readers) > 1 else 'reads'}"
            takes = ways_to(column, offered)
            lines.append(f"nobody makes the column {name} {column.shape}, which {read_by}; it takes {takes}")
    return lines


def ways_to(column: Column, offered: Mapping[str, Sequence[str]] | None = None) -> str:
    """Who could make it, and what one does to have it."""
    ways = {column.makers[0]: column.how} if column.how else {}
    ways = ways or {kind: HOW[kind].format(name=column.name) for kind in column.makers}
    if strategies := (offered or {}).get(column.name):
        ways[STRATEGY] = " or ".join(f"rollout={name}" for name in strategies)
    return ", or ".join(ways.values())
