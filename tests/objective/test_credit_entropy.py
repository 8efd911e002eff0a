"""Entropy credit: quantile of the whole batch, what leaves the denominator and what does not."""

import pytest
import torch

from mmrl.objective.credit.tokens import quantile
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(entropy: torch.Tensor, mask=None, **fields) -> Batch:
    mask = torch.ones(entropy.shape, dtype=torch.bool) if mask is None else mask
    return Batch(mask=mask, old_log_probs=torch.zeros_like(entropy), columns={"entropy": entropy}, **fields)


def test_quantile_equals_torch_quantile():
    values = torch.rand(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for probability in (0.0, 0.3, 0.8, 1.0):
        assert quantile(values, probability) == pytest.approx(torch.quantile(values, probability).item())


def test_forking_tokens_worked_number():
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 5.0]], dtype=torch.float64)
    assert quantile(entropy[0], 0.8).item() == pytest.approx(1.32)
    advantage, mask = Bound.of("credit", "80_20_forking_tokens")(torch.ones_like(entropy), batch_of(entropy))
    assert advantage.tolist() == [[0, 0, 0, 0, 1]]
    assert mask.all()
    _, mask = Bound.of("credit", {"name": "80_20_forking_tokens", "renormalize": True})(
        torch.ones_like(entropy), batch_of(entropy)
    )
    assert mask.sum() == 1


def test_forking_tokens_quantile_covers_the_batch_not_the_row():
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [1.1, 1.2, 1.3, 1.4, 1.5]], dtype=torch.float64)
    advantage, _ = Bound.of("credit", "80_20_forking_tokens")(torch.ones_like(entropy), batch_of(entropy))
    assert advantage.sum(1).tolist() == [0, 2]


def test_forking_tokens_without_any_training_token_are_all_zero():
    entropy = torch.zeros(2, 3, dtype=torch.float64)
    batch = batch_of(entropy, trained=torch.tensor([False, False]))
    advantage, _ = Bound.of("credit", "80_20_forking_tokens")(torch.ones_like(entropy), batch)
    assert (advantage == 0).all()
