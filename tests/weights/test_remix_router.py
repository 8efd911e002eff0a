"""ReMix: draws without replacement, an unbiased router gradient, adapters that weigh alike."""

from itertools import permutations

import pytest
import torch
from torch import nn

from mmrl.errors import ConfigError
from mmrl.weights.remix_router import RoutedLoras, drawn_subsets, router_loss, subset_log_prob

SCORES = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
COSTS = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)


def test_all_ordered_draws_sum_to_one():
    log_q = torch.log_softmax(SCORES, -1)
    every = torch.tensor(list(permutations(range(3), 2)))
    p = subset_log_prob(log_q.expand(6, 3), every).exp()
    assert p.sum() == pytest.approx(1) and p[0] == pytest.approx(
        float(log_q.exp()[0] * log_q.exp()[1] / (1 - log_q.exp()[0]))
    )


def test_the_gradient_is_unbiased_on_three_arms():
    """Against the exact gradient of the expected cost, within three standard errors of 2e5 draws."""
    exact = SCORES.clone().requires_grad_()
    (torch.softmax(exact, -1) * COSTS).sum().backward()
    q = torch.softmax(SCORES, -1)
    drawn = drawn_subsets(torch.log_softmax(SCORES, -1).expand(100_000, 3), 1, 2, torch.Generator().manual_seed(0))[
        ..., 0
    ]
    cost = COSTS[drawn]
    slope = nn.functional.one_hot(drawn, 3) - q  # grad of log q(arm) by the scores
    other = cost.flip(0)
    each = ((cost - other)[..., None] * slope).mean(0)
    error = each.std(0) / len(each) ** 0.5
    assert ((each.mean(0) - exact.grad).abs() < 3 * error).all()
    scores = SCORES.clone().requires_grad_()
    log_q = torch.log_softmax(scores, -1)
    router_loss(cost, log_q[drawn]).mean().backward()
    assert torch.allclose(scores.grad, each.mean(0), atol=1e-9), "and router_loss is that estimator"


def test_equal_losses_teach_nothing():
    scores = SCORES.clone().requires_grad_()
    router_loss(torch.ones(3), torch.log_softmax(scores, -1)).backward()
    assert not scores.grad.any()
    with pytest.raises(ConfigError, match="at least 2"):
        router_loss(torch.ones(1), scores[:1])


def test_active_adapters_weigh_alike_and_a_fresh_layer_is_its_base():
    torch.manual_seed(0)
    layer = RoutedLoras(nn.Linear(4, 3), count=5, active=2, rank=2)
    inputs = torch.randn(6, 4)
    assert torch.equal(layer(inputs), layer.base(inputs))
    nn.init.ones_(layer.b)
    nn.init.ones_(layer.a)
    one = layer(inputs, torch.tensor([0, 1]).expand(6, 2))
    assert torch.allclose(one, layer(inputs, torch.tensor([3, 2]).expand(6, 2)), atol=1e-6)
    assert torch.allclose(one - layer.base(inputs), 2 * inputs.sum(-1, keepdim=True).expand(6, 3), atol=1e-5)


def test_the_router_learns_which_adapter_helps():
    """Only adapter 2 takes the base to the target: it is the likeliest in the end, and its own gradient is ordinary."""
    torch.manual_seed(0)
    layer = RoutedLoras(nn.Linear(3, 1, bias=False), count=4, active=1, rank=1)
    inputs = torch.ones(16, 3)
    with torch.no_grad():
        layer.a.fill_(1 / 3)
        layer.b[2] = 1.0
    target = layer.base(inputs) + 1
    optimizer, generator = torch.optim.Adam(layer.router.parameters(), lr=0.05), torch.Generator().manual_seed(0)
    for _ in range(60):
        log_q = layer.log_q(inputs)
        drawn = drawn_subsets(log_q, 1, 4, generator)
        losses = torch.stack([(layer(inputs, d) - target).square().mean(-1) for d in drawn])
        log_probs = torch.stack([subset_log_prob(log_q, d) for d in drawn])
        optimizer.zero_grad()
        router_loss(losses, log_probs).mean().backward()
        optimizer.step()
    assert layer.log_q(inputs).exp()[:, 2].min() > 0.9
