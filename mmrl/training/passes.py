"""From the union of declared needs to forward passes: nothing extra is computed, several needs share one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.policies.base import Policy
from mmrl.rollout.nesting import Nested
from mmrl.stages import Need, View

STEP_REWARDS, GREEDY = "step_rewards", "greedy_success"


@dataclass
class Pass:
    """One forward pass without gradient: these needs, under this view, with these weights."""

    under: View | None
    weights: str
    needs: list[Need] = field(default_factory=list)

    def __str__(self) -> str:
        probes = ", ".join(n.probe for n in self.needs)
        return f"{probes} with {self.weights} weights" + (f" under {self.under}" if self.under else "")


@dataclass
class PassPlan:
    """The passes of one step.

    prepare       no-gradient passes between rollout and advantage
    early         whether they must run before groups are selected, since selection reads them
    update        what the update's own forward pass returns besides log-probs
    step_rewards  how outputs of intermediate states are made, where they are scored too: by these needs' options
    compare       needs that compare all rollouts of the step once advantages are known
    greedy        whether each prompt is answered once more, in the deterministic mode
    """

    prepare: list[Pass]
    early: bool
    update: list[Need]
    step_rewards: list[Need]
    compare: list[Need]
    greedy: bool

    def describe(self) -> list[str]:
        lines = ["rollout: sample and keep log-probs"]
        lines += [f"prepare: {p}" for p in self.prepare]
        lines += ["prepare: answer each prompt once more, greedily"] if self.greedy else []
        lines += [f"prepare: score the outputs of intermediate steps{_how(n)}" for n in self.step_rewards]
        lines += [f"prepare: {n.probe}, in passes that compare all rollouts of the step" for n in self.compare]
        extra = f" with {', '.join(n.probe for n in self.update)}" if self.update else ""
        return [*lines, f"update: log-probs and gradient{extra}"]


def plan_passes(
    objective: Objective, policy: type[Policy], strategies: Nested | None = None, settings: Any = None
) -> PassPlan:
    """Refuse what the policy cannot give, then merge needs into passes. Strategies read between rounds, so what they
    need is computed in each.

    settings  the policy's section, where what it offers depends on it

    Raises ConfigError naming the function, the need, and the policies that offer it.
    """
    asked_between = {} if strategies is None else strategies.needs
    needs = {n: [*objective.needs.get(n, []), *asked_between.get(n, [])] for n in (*objective.needs, *asked_between)}
    _refuse_comparisons(objective, policy, asked_between)
    for need, asked_by in needs.items():
        _check_view(need, " and ".join(asked_by))
        policy.check_need(need, " and ".join(asked_by), settings)
    for bound in () if strategies is None else strategies.bounds:
        if bound.state.writer == "teacher":
            policy.check_writer(settings, f"rollout {bound.name!r}")
    policy.check_objective(objective, settings)
    passes: dict[tuple, Pass] = {}
    for need in needs:
        sampled = need.probe == "log_probs" and need.under is None and need.weights == "old"
        elsewhere = need.probe in (STEP_REWARDS, GREEDY) or need.probe in policy.batch_probes
        if need.weights == "current" or elsewhere or sampled:
            continue
        passes.setdefault((need.under, need.weights), Pass(need.under, need.weights)).needs.append(need)
    early = bool(asked_between) or any(b.needs for b in (*objective.shaping, *objective.group))
    update = [n for n in needs if n.weights == "current"]
    steps = [n for n in needs if n.probe == STEP_REWARDS]
    compare = [n for n in needs if n.probe in policy.batch_probes]
    return PassPlan(list(passes.values()), early, update, steps, compare, any(n.probe == GREEDY for n in needs))


def _how(need: Need) -> str:
    options = ", ".join(f"{k} {v}" for k, v in need.options)
    return f" ({options})" if options else ""


def _check_view(need: Need, asked_by: str) -> None:
    """The update has one forward pass, and it shows each prompt as it is trained."""
    if need.weights == "current" and need.under is not None:
        raise ConfigError(
            f"{asked_by} needs {need.probe!r} with current weights under {need.under}; the update's own forward pass "
            "shows no other view of a prompt: read it with weights 'old' or 'reference', without gradient"
        )


def _refuse_comparisons(objective: Objective, policy: type[Policy], between: dict[Need, list[str]]) -> None:
    """Probes that compare the rows of a group or batch run when it is complete: nothing between rounds reads one."""
    read = {need: names for need, names in between.items()}
    for bound in objective.group:
        if not getattr(bound.spec.function, "after_advantage", False):
            for need in bound.needs.values():
                read.setdefault(need, []).append(f"group {bound.name!r}")
    for need, names in read.items():
        if need.probe in policy.group_probes | policy.batch_probes:
            raise ConfigError(
                f"{' and '.join(names)} reads {need.probe!r}, which compares all rows of a group, before the groups "
                "are complete; read it in an advantage, a credit function, or a selection behind the advantage"
            )
