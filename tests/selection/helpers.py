"""Batches of known outcomes, one group a prompt."""

import torch

from mmrl.record import Batch


def groups(*rewards: list[float], step: int = 0, **fields) -> Batch:
    """Group g holds the answers that earned `rewards[g]`."""
    flat = [reward for group in rewards for reward in group]
    group = [g for g, each in enumerate(rewards) for _ in each]
    return Batch(
        mask=torch.ones(len(flat), 1, dtype=torch.bool), old_log_probs=torch.zeros(len(flat), 1),
        reward=torch.tensor(flat), group=torch.tensor(group), step=step, **fields,
    )  # fmt: skip


def solved(right: int, of: int = 8) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)
