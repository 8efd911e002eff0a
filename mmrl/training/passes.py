"""From the union of declared needs to forward passes: nothing extra is computed, several needs share one."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.policies.base import Policy
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
    step_rewards  whether intermediate outputs are scored too
    compare       needs that compare all rollouts of the step once advantages are known
    greedy        whether each prompt is answered once more, in the deterministic mode
    """

    prepare: list[Pass]
    early: bool
    update: list[Need]
    step_rewards: bool
    compare: list[Need]
    greedy: bool

    def describe(self) -> list[str]:
        lines = ["rollout: sample and keep log-probs"]
        lines += [f"prepare: {p}" for p in self.prepare]
        lines += ["prepare: answer each prompt once more, greedily"] if self.greedy else []
        lines += ["prepare: score the outputs of intermediate steps"] if self.step_rewards else []
        lines += [f"prepare: {n.probe}, in passes that compare all rollouts of the step" for n in self.compare]
        extra = f" with {', '.join(n.probe for n in self.update)}" if self.update else ""
        return [*lines, f"update: log-probs and gradient{extra}"]


def plan_passes(objective: Objective, policy: type[Policy]) -> PassPlan:
    """Refuse what the policy cannot give, then merge needs into passes.

    Raises ConfigError naming the function, the need, and the policies that offer it.
    """
    needs = objective.needs
    for need, asked_by in needs.items():
        _check_view(need, " and ".join(asked_by))
        policy.check_need(need, " and ".join(asked_by))
    passes: dict[tuple, Pass] = {}
    for need in needs:
        sampled = need.probe == "log_probs" and need.under is None and need.weights == "old"
        elsewhere = need.probe in (STEP_REWARDS, GREEDY) or need.probe in policy.batch_probes
        if need.weights == "current" or elsewhere or sampled:
            continue
        passes.setdefault((need.under, need.weights), Pass(need.under, need.weights)).needs.append(need)
    early = any(b.needs for b in (*objective.shaping, *objective.group))
    update = [n for n in needs if n.weights == "current"]
    steps = any(n.probe == STEP_REWARDS for n in needs)
    compare = [n for n in needs if n.probe in policy.batch_probes]
    return PassPlan(list(passes.values()), early, update, steps, compare, any(n.probe == GREEDY for n in needs))


def _check_view(need: Need, asked_by: str) -> None:
    """The update has one forward pass, and it shows each prompt as it is trained."""
    if need.weights == "current" and need.under is not None:
        raise ConfigError(
            f"{asked_by} needs {need.probe!r} with current weights under {need.under}; the update's own forward pass "
            "shows no other view of a prompt: read it with weights 'old' or 'reference', without gradient"
        )
