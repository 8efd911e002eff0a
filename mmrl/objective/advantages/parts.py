"""Baselines for parts of a rollout: turns (TRLOO), list items (Rank-GRPO), phases (F-GRPO), macro actions (MA-RLHF).

A part is named by the column `segment (B, T)`: 0, 1, 2 ... in the row, -1 where an action belongs to none.
`action_reward (B, T)` holds rewards at actions; those of a part are added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.advantages.group import on_last_action
from mmrl.objective.credit.rollouts import component
from mmrl.objective.groups import group_centred, group_count, group_normalized
from mmrl.objective.numerics import later_sum, position
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


def table(values: Tensor, segment: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) sum of `values (B, T)` over each part, and (B, K) how many actions it has."""
    parts = int(segment.max()) + 1 if segment.numel() and int(segment.max()) >= 0 else 1
    inside = (mask & (segment >= 0)).to(values.dtype)
    blank = values.new_zeros(segment.shape[0], parts)
    place = segment.clamp(min=0)
    return blank.scatter_add(1, place, values * inside), blank.scatter_add(1, place, inside)


def spread_out(parts: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
    """(B, K) -> (B, T): each action takes its part's value, 0 outside."""
    return parts.gather(1, segment.clamp(min=0)) * (mask & (segment >= 0))


def _same_part(batch: Batch, parts: int) -> Tensor:
    """(B K,) group ids under which equal parts of the members of a group meet."""
    _, dense = torch.unique(batch.group, return_inverse=True)
    return (dense[:, None] * parts + torch.arange(parts, device=dense.device)).flatten()


@stage(
    "advantage",
    paper="Dr. Kernel (TRLOO), arXiv 2602.05885",
    formula="A_ik = n/(n-1) (G_ik - mean over rollouts at (prompt, turn k)), G_ik = sum_{u >= k} gamma^(u-k) rew_iu",
    confidence="verified",
    needs=("segment", "action_reward"),
    modalities=LANGUAGE,
    grain="action",
)
def trloo(batch: Batch, *, discount: float = 1.0) -> Tensor:
    """Turn-level leave-one-out: a turn is compared with the same turn of the other rollouts.

    discount  of later turns' rewards

    Reads `segment` (turns) and `action_reward`. Returns (B, T). A turn that only one rollout reached keeps its
    return; actions outside turns get 0. One turn is RLOO. Source: hkust-nlp/KernelGYM, core_algos.py.
    """
    rewards, size = table(batch["action_reward"], batch["segment"], batch.mask)
    returns = later_sum(rewards, discount)
    valid = ((size > 0) & batch.counted[:, None]).flatten()
    together = _same_part(batch, rewards.shape[1])
    count = group_count(together, valid)
    centred = group_centred(returns.flatten(), together, valid)
    advantage = torch.where(count > 1, centred * count / (count - 1).clamp(min=1), returns.flatten() * valid)
    return spread_out(advantage.view_as(rewards), batch["segment"], batch.mask)


@stage(
    "advantage",
    paper="Rank-GRPO, 2025",
    formula="A_ik = (rel_ik - mean) / (std + eps) over (prompt, rank k), rel_ik = sum_{j >= k} hit_ij / log2(j + 2)",
    confidence="verified",
    needs=("segment", "action_reward"),
    modalities=LANGUAGE,
    grain="action",
)
def rank_grpo(
    batch: Batch, *, causal: bool = True, items: int | None = None, overflow: float = -1.0, eps: float = 1e-4
) -> Tensor:
    """For list outputs: credit and standardisation per rank.

    causal    an item is credited with the discounted hits from its rank on; False: with its own hit alone
    items     how many items were wanted; actions of further items get `overflow`. None: no limit
    overflow  ours: the authors use a fixed negative value

    Reads `segment` (items, 0 first) and `action_reward` (hits). Returns (B, T). Pair it with ratio `segment`.
    Source: yaochenzhu/Rank-GRPO, rank_grpo_trainer.py; its shaping of the end token is left out.
    """
    hits, size = table(batch["action_reward"], batch["segment"], batch.mask)
    if causal:
        rank = torch.arange(hits.shape[1], device=hits.device, dtype=hits.dtype)
        hits = later_sum(hits / torch.log2(rank + 2), 1.0)
    valid = ((size > 0) & batch.counted[:, None]).flatten()
    standard = group_normalized(hits.flatten(), _same_part(batch, hits.shape[1]), valid, eps).view_as(hits)
    if items is not None and items < hits.shape[1]:
        standard[:, items:] = overflow
    return spread_out(standard, batch["segment"], batch.mask)


@stage(
    "advantage",
    paper="F-GRPO (factorized), arXiv 2605.12995",
    formula="A_i^s = R_i^s - mean_g(R^s) on the actions of phase s, each phase with its own reward",
    confidence="partly",
    needs=("segment", "components"),
    modalities=LANGUAGE,
    grain="action",
)
def f_grpo(
    batch: Batch, *, rewards: tuple[str, ...] = ("coverage", "ranking"), std: bool = False, eps: float = 1e-6
) -> Tensor:
    """Phases of one rollout (generate a set, then rank it), each with its own reward and group advantage.

    rewards  the reward component of phase 0, 1, ...
    std      divide by the group's deviation; the paper follows Dr.GRPO and does not

    Reads `segment` (phases). Returns (B, T). Pair it with ratio `segment` and aggregation `segment_mean`, under
    which phases weigh the same. Source: abstract and a digest of the full text (mean-only advantages, phases weighing
    the same); the ratio's form is ours.
    """
    columns = []
    for name in rewards:
        values = component(batch, name, "f_grpo")
        columns.append(
            group_normalized(values, batch.group, batch.counted, eps)
            if std
            else group_centred(values, batch.group, batch.counted)
        )
    phases = torch.stack(columns, dim=1)
    segment = torch.where(batch["segment"] < len(rewards), batch["segment"], -1)
    return spread_out(phases, segment, batch.mask)


def macro_actions(mask: Tensor, size: int) -> Tensor:
    """(B, T) long: macro of each action, `size` actions each; the last action is a macro of its own."""
    place = position(mask)
    macro = (place - 1).clamp(min=0) // size
    last = mask & (place == place[:, -1:])
    before = (place[:, -1:] - 2).clamp(min=-1) // size
    return torch.where(last, before + 1, macro).masked_fill(~mask, -1)


@stage(
    "advantage",
    paper="MA-RLHF, arXiv 2410.02743",
    formula="GAE over macro actions: delta_k = rew_k + gamma V_{k+1} - V_k, V and rew averaged inside the macro",
    confidence="verified",
    scope="batch",
    needs=("values",),
    modalities=LANGUAGE,
    grain="action",
)
def ma_rlhf(batch: Batch, *, size: int = 5, discount: float = 1.0, trace: float = 0.95) -> Tensor:
    """Generalised advantage estimation whose unit is a run of actions.

    size      actions in a macro; 1 is token PPO, longer than the answer is one advantage for the answer. Ignored
              where the rollouts carry a `segment` column (phrases)
    discount  gamma; trace  lambda: smaller trusts the critic more

    Reads `values (B, T)` of a critic. The outcome stands on the last action, which is a macro of its own, so that
    it is not averaged away. Returns (B, T). Source: ernie-research/MA-RLHF, ppo_trainer.py (its ratios stay
    token-level).
    """
    macro = batch["segment"] if "segment" in batch else macro_actions(batch.mask, size)
    values, count = table(batch["values"], macro, batch.mask)
    rewards = on_last_action(batch.reward.nan_to_num(0), batch.mask).to(batch["values"])
    rewards, _ = table(rewards, macro, batch.mask)
    values, rewards = values / count.clamp(min=1), rewards / count.clamp(min=1)
    advantage, running, following = torch.zeros_like(values), torch.zeros_like(values[:, 0]), values[:, 0] * 0
    for k in range(values.shape[1] - 1, -1, -1):
        there = count[:, k] > 0
        delta = rewards[:, k] + discount * following - values[:, k]
        running = torch.where(there, delta + discount * trace * running, running)
        following = torch.where(there, values[:, k], following)
        advantage[:, k] = running
    return spread_out(advantage, macro, batch.mask)
