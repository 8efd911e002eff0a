"""Steps that combine the gradients of several rewards, on a real generator."""

from dataclasses import replace

import pytest
import torch

from mmrl.objective import Objective
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.rollout.nesting import Nested
from mmrl.training.combining import combined, mixture_of
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import make_accelerator
from mmrl.training.passes import plan_passes
from mmrl.training.update import Gradients, passes_over
from tests.policies.generation.tiny import flow_policy, flow_requests, nudge

RECIPE = {
    "matching_objective": {"name": "diffusion_nft", "mix": 0.1}, "aggregation": "sequence_mean",
    "regularizers": [{"name": "velocity_kl", "to": "reference", "coefficient": 0.5}],
}  # fmt: skip
SETTINGS = {"likelihood": "matching", "draws": {"count": 2}, "anchor": {}, "lora": {"rank": 4, "alpha": 8}}


def trainer(advantage, regularizers=True):
    objective = Objective.of({**RECIPE, "advantage": advantage} | ({} if regularizers else {"regularizers": []}))
    policy = flow_policy(**SETTINGS)
    nudge(policy)
    config = TrainingConfig(micro_batch_size=4, prompts_per_step=2, group_size=4)
    reads = plan_passes(objective, type(policy), Nested.of([]), policy.config).update
    return objective, policy, config, Gradients(policy, objective, reads, config, make_accelerator())


def rows_of(policy, objective, config, conflict=1.0):
    rollouts = policy.rollout(flow_requests(4), Key(5))
    first = torch.linspace(0, 1, 8)
    rollouts.components = {"a": first, "b": (1 - conflict) * first + conflict * torch.cos(7 * first)}
    rollouts.reward = rollouts.success = first
    batch = objective.assess(objective.shape(Batch.of(rollouts)))
    return rollouts, *passes_over(objective, batch, config)[0]


def gradient(policy):
    found = torch.cat([p.grad.flatten().double() for p in policy.module.parameters() if p.grad is not None])
    policy.module.zero_grad()
    return found


def test_the_step_is_the_least_norm_combination_and_penalties_come_after():
    objective, policy, config, gradients = trainer("marble")
    rollouts, batch, weights = rows_of(policy, objective, config)
    mine, mixture = torch.arange(8), mixture_of(objective)
    bare = replace(gradients, objective=replace(objective, regularizers=[]))
    apart = []
    for advantage in mixture.split(batch).values():
        one = replace(batch, advantage=advantage[:, None].expand(batch.mask.shape).clone())
        bare.add(rollouts, one, weights, mine, 0)
        apart.append(gradient(policy))
    gradients.add(rollouts, batch, weights, mine, 0)
    whole = gradient(policy)
    bare.add(rollouts, batch, weights, mine, 0)
    penalty = whole - gradient(policy)
    assert penalty.norm() > 1e-3 * whole.norm(), "the penalty is felt, so that its absence would show"
    added = combined(gradients, mixture, rollouts, batch, weights, mine, 0)
    found = gradient(policy) - penalty
    units = [g / g.norm() for g in apart]
    dots = [float(found @ u) for u in units]
    assert dots[0] == pytest.approx(dots[1], rel=1e-3) and dots[0] > 0
    wanted = sum(g.norm() for g in apart) / 2 * (units[0] + units[1]) / 2  # two units: halfway
    assert (found - wanted).norm() < 1e-3 * wanted.norm()
    assert added.passes and added.sums["marble/weight/a"][0] == pytest.approx(0.5)


def test_between_solves_one_pass_trains_on_the_mixture():
    """The loss is affine in the advantage: the gradient of the mixed one is the mixed gradient."""
    objective, policy, config, gradients = trainer("marble", regularizers=False)
    mixture = mixture_of(objective)
    mixture.weights = {"a": 0.8, "b": 0.2}
    rollouts, batch, weights = rows_of(policy, objective, config)
    mine, parts = torch.arange(8), []
    for advantage in mixture.split(batch).values():
        one = replace(batch, advantage=advantage[:, None].expand(batch.mask.shape).clone())
        gradients.add(rollouts, one, weights, mine, 0)
        parts.append(gradient(policy))
    gradients.add(rollouts, batch, weights, mine, 0)
    mixed = 0.8 * parts[0] + 0.2 * parts[1]
    assert (gradient(policy) - mixed).norm() < 1e-5 * mixed.norm()


def test_other_advantages_are_no_mixtures():
    assert mixture_of(Objective.of({"advantage": "gdpo_decoupled"})) is None
