"""What a step of a generator costs in calls of its transformer, by the plan alone: whole, as a tree, and pruned.

A call is one state at one time, once through; a guided velocity is two. A tree of `branching` asks for a state once in
each row that leaves it, so that 2 roots that split behind steps 3, 6 and 9 of 20 cost 218 where 16 rows cost 320.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from mmrl.objective import Objective
from mmrl.pipelines.config import RunConfig
from mmrl.policies.generation import unconditional
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.steps import TrainSteps
from mmrl.rollout.nesting import Nested


@dataclass(frozen=True)
class Tree:
    """roots of a group, splits behind the first `at` steps into `width` rows each"""

    roots: int
    at: tuple[int, ...] = ()
    width: int = 2

    @property
    def leaves(self) -> int:
        return self.roots * self.width ** len(self.at)

    def rows(self, step: int) -> int:
        """How many rows act at a step: those that begin behind it do not yet."""
        return self.roots * self.width ** sum(place <= step for place in self.at)


def sampled(tree: Tree, steps: int, prefix: int = 0) -> int:
    """States of a group's rollouts; its first `prefix` steps are one trajectory."""
    return sum(1 if step < prefix else tree.rows(step) for step in range(steps))


def trained(tree: Tree, steps: Sequence[int], pruning: Sequence[tuple[str, dict[str, Any]]] = ()) -> int:
    """States of a group's update: each trained step once for each state, but for those that are pruned at first."""
    left = {step: tree.rows(step) for step in steps}
    for name, options in pruning:
        for step in steps:
            if name == "depth_pruning":
                first = options.get("start", 9)
                left[step] = 0 if first <= step < first + options.get("window", 4) else left[step]
            elif tree.at and step > max(tree.at):
                few = 2 * ceil(tree.leaves * options.get("share", 0.25))
                kept = tree.leaves // tree.width if options.get("keep", "best") == "best" else min(few, tree.leaves)
                left[step] = min(left[step], kept)
    return sum(left.values())


def shortened(settings: FlowPolicyConfig, places: Sequence[int]) -> int:
    """Steps that a rollout takes: those behind the last noise are fewer under `policy.tail`."""
    if settings.tail is None:
        return settings.steps
    body = max(places) + 1
    return body + max(1, int(settings.tail * (settings.steps - body)))


def windows(choice: TrainSteps, steps: int) -> list[list[int]]:
    """Every set of trained steps that a run may choose; the last step is the ODE's. Of a random share, its size."""
    possible = steps - 1
    if choice.select == "window":
        high = choice.high or possible
        starts = range(choice.low, high - choice.size + 1, choice.stride if choice.order == "progressive" else 1)
        return [sorted({*range(start, start + choice.size), *choice.also}) for start in starts]
    return [list(range(possible))]


def calls_lines(config: RunConfig, objective: Objective) -> list[str]:
    """The paragraph of `mmrl plan`; nothing for strategies and choices of steps whose cost the plan does not fix."""
    settings, strategies = config.policy_settings(), Nested.of(config.rollout).bounds
    assert isinstance(settings, FlowPolicyConfig)
    choice, names = settings.train_steps, [bound.name for bound in strategies]
    matching = settings.likelihood == "matching"
    if choice.select == "one" or set(names) - {"branching"} or len(names) > 1:
        return []
    tree = Tree(config.training.group_size)
    if names:
        tree = Tree(config.training.group_size, tuple(strategies[0].state.at), strategies[0].state.width)
    prompts, guided = config.training.prompts_per_step, 2 if settings.guidance_scale > 1 else 1
    places = windows(choice, settings.steps) or [[]]
    alike = settings.same_initial_noise and settings.share_prefix
    drawn = [
        sampled(tree, shortened(settings, steps), min(steps) if alike and steps else 0) * guided for steps in places
    ]  # fmt: skip
    alone = tree.leaves * settings.steps * guided
    lines = [
        "calls of the transformer, a prompt (a state once through is one, guided two)",
        f"  rollouts: {_span(drawn)}" + (f"; {tree.leaves} rows apart {alone}" if max(drawn) != alone else ""),
    ]
    if matching:
        lines.append(f"  update: {tree.leaves * settings.draws.count} forward and backward, one for each draw")
    else:
        share = choice.fraction if choice.select == "fraction" else 1.0
        whole = [int(share * trained(tree, steps)) * guided for steps in places]
        pruning = [
            (b.name, dict(b.parameters)) for b in objective.credit if b.name in ("depth_pruning", "width_pruning")
        ]
        lines.append(f"  update: {_span(whole)} forward and backward")
        if pruning:
            left = [int(share * trained(tree, steps, pruning)) * guided for steps in places]
            lines[-1] += f", pruned to {_span(left)} by {' and '.join(name for name, _ in pruning)}"
        if unconditional.asked(settings):
            count = config.training.updates_per_epoch * config.training.epochs
            of = "" if count == 1 else f", in the first of {count} optimizer steps"
            lines[-1] += f"; half of them are known of the rollouts{of} (policy.reuse_unconditional)"
    reused = "; steps that reuse blocks count as the share they run" if settings.reuse is not None else ""
    return [*lines, f"  {prompts} prompts a step{reused}"]


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
