"""Small scored batches and steps, for strategies without a policy."""

import torch

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.rollout.plan import Step


def rows(rewards: list[float], group: list[int], **fields) -> Batch:
    """One action a row; `reward` is `success` too, and members count up in their group."""
    worth = torch.tensor(rewards, dtype=torch.float64)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    old = torch.zeros(len(rewards), 1, dtype=torch.float64)
    return Batch(mask=mask, old_log_probs=old, reward=worth, success=worth, group=torch.tensor(group), **fields)


def step(round: int = 0, size: int = 2, prompts: int = 2, select=lambda batch: batch) -> Step:
    """A step of a data set whose rows are drawn in order, from 0."""
    taken = iter(range(1000))
    return Step(0, 1, Key(0), size, prompts, lambda n: [next(taken) for _ in range(n)], select, round)
