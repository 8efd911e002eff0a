"""Probes of particular methods: worked numbers, gradients, and that language policies offer them."""

import math

import pytest
import torch

from mmrl.policies.language.log_probs import Chunk
from mmrl.policies.language.probes.token_probes import (
    NEVER,
    expected_entropy_slope,
    min_p_log_probs,
    normalized_entropy,
    nucleus_entropy,
    one_token_rollout,
    tempered_log_probs,
)
from mmrl.policies.registry import policy_class


def chunk_of(probabilities: list[float], action: int = 0, temperature: float = 1.0) -> Chunk:
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    return Chunk(logits, torch.zeros(1, 1), torch.tensor([action]))


def test_tempered_log_probs():
    chunk = chunk_of([0.7, 0.2, 0.1], action=1)
    assert tempered_log_probs(chunk, temperature=1.0).item() == pytest.approx(math.log(0.2))
    hot = torch.tensor([0.7, 0.2, 0.1]).double() ** (1 / 1.2)
    assert tempered_log_probs(chunk, temperature=1.2).item() == pytest.approx((hot[1] / hot.sum()).log().item())


def test_normalized_entropy_and_expected_slope():
    chunk = chunk_of([0.7, 0.2, 0.1])
    assert normalized_entropy(chunk).item() == pytest.approx(0.729847, abs=1e-6)
    assert expected_entropy_slope(chunk).item() == pytest.approx(0.170808, abs=1e-6)
    suppressed = Chunk(torch.tensor([[0.0, 0.0, torch.finfo(torch.float32).min]]), torch.zeros(1, 1), torch.tensor([0]))
    assert expected_entropy_slope(suppressed).item() == pytest.approx(0.0, abs=1e-6)


def test_nucleus_entropy_with_and_without_the_token_that_crosses():
    chunk = chunk_of([0.5, 0.3, 0.15, 0.05])
    assert nucleus_entropy(chunk, top_p=0.9).item() == pytest.approx(0.993268, abs=1e-6)
    assert nucleus_entropy(chunk, top_p=0.9, inclusive=False).item() == pytest.approx(0.661563, abs=1e-6)
    assert nucleus_entropy(chunk, top_p=0.4, inclusive=False).item() == 0


@pytest.mark.parametrize("inclusive", [True, False])
def test_nucleus_entropy_gradient(inclusive):
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    actions = torch.zeros(3, dtype=torch.long)
    assert torch.autograd.gradcheck(
        lambda z: nucleus_entropy(Chunk(z, torch.zeros(3, 1), actions), top_p=0.8, inclusive=inclusive), logits
    )


def test_min_p_keeps_tokens_near_the_best_and_renormalises():
    probabilities = [0.7, 0.2, 0.09, 0.009, 0.001]
    kept = [math.exp(min_p_log_probs(chunk_of(probabilities, a), kappa=0.02).item()) for a in range(3)]
    assert kept == pytest.approx([0.707071, 0.202020, 0.090909], abs=1e-6)
    assert min_p_log_probs(chunk_of(probabilities, 3), kappa=0.02).item() == NEVER
    assert min_p_log_probs(chunk_of(probabilities, 2), kappa=0.15, fixed=True).item() == NEVER


@pytest.mark.parametrize("modality", ["vlm", "video"])
def test_language_policies_offer_them(modality):
    offered = policy_class(modality).probes
    assert {"tempered_log_probs", "normalized_entropy", "expected_entropy_slope", "nucleus_entropy"} <= offered
    assert "min_p_log_probs" in offered


def test_one_token_rollout_is_supervision_times_the_hit_rate():
    logits = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1])
    uniform = (torch.arange(10000, dtype=torch.float64)[None, :] + 0.5) / 10000
    objective = one_token_rollout(logits, target, uniform, temperature=1.0, miss=0.0)
    (gradient,) = torch.autograd.grad(objective.sum(), logits)
    (supervised,) = torch.autograd.grad(logits.log_softmax(-1)[0, 1], logits)
    hit_rate = logits.detach().softmax(-1)[0, 1]
    assert torch.allclose(gradient, hit_rate * supervised, atol=1e-4)


def test_wrong_candidates_are_pushed_down():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    uniform = torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(one_token_rollout(logits, torch.tensor([0]), uniform).sum(), logits)
    assert gradient[0, 0] > 0 > gradient[0, 2]
