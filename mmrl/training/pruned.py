"""Actions that credit took out of the loss are not computed: a pruned tree costs the states that are left.

Where every action has a ratio of its own and nothing else is pulled towards, an action that weighs nothing adds nothing
to loss and gradient, whatever its log-prob. A policy that scores actions one by one (`splits_actions`) then leaves it
out of the forward and the backward pass, and `calls/trained` counts what was spent. All else is computed whole.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmrl.objective import Objective
from mmrl.policies.base import Policy
from mmrl.policies.sharding import is_sharded
from mmrl.record import Batch, Rollouts

RATIOS = ("token", "grpo_guard")
REGIONS = ("clip", "flow_dppo")
"""Of an action by itself: they read no other action of its row."""


def prunes(policy: Policy, objective: Objective) -> bool:
    """Whether what an action adds is its own. Ranks that hold shards make equally many calls, so they prune nothing."""
    whole = objective.kinds or objective.score_objective or objective.matching_objective or objective.regularizers
    updated = any(bound.spec.phase == "update" for bound in objective.credit)
    return (
        policy.splits_actions and not whole and not updated and not is_sharded(policy.module)
        and objective.ratio.name in RATIOS and objective.trust_region.name in REGIONS
    )  # fmt: skip


def without_idle(rollouts: Rollouts, batch: Batch, weights: Tensor) -> tuple[Rollouts, Batch]:
    """Rollouts and batch of which only actions that weigh something are scored; as they are where none does."""
    kept = batch.mask & (weights != 0)
    if not bool(kept.any()) or bool((kept == batch.mask).all()):
        return rollouts, batch
    return replace(rollouts, mask=kept.to(rollouts.mask.device)), replace(batch, mask=kept)
