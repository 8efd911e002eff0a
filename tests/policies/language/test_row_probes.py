"""Probes of single rows: VCPO's norm of a rollout's score gradient."""

import torch

from mmrl.policies.language.probes.row_probes import score_gradient_norm
from mmrl.stages import NEEDS

NORM = NEEDS["score_gradient_norm"]


def test_worked_numbers():
    """log pi = a x + b y with (x, y) = (3, 4): the gradient's norm is 5; a weight that is not read adds nothing."""
    a, b, c = (torch.tensor(v, requires_grad=True) for v in (0.5, 0.25, 1.0))
    rows = [(3.0, 4.0), (0.0, 2.0)]
    norms = score_gradient_norm(lambda row: torch.stack([a * rows[row][0], b * rows[row][1]]), 2, [a, b, c])
    assert norms.tolist() == [5.0, 2.0]


def test_norms_are_those_of_each_row_by_itself(policies, rolled):
    policy, rollouts = policies["qwen3_vl"], rolled["qwen3_vl"].index([0, 1, 5])
    with torch.no_grad():
        norms = policy.evaluate(rollouts, [NORM], weights="old")[NORM.key]
    weights = [w for w in policy.inner.parameters() if w.requires_grad]
    for row, norm in enumerate(norms):
        log_prob = policy.evaluate(rollouts.index([row])).log_probs.sum()
        grads = torch.autograd.grad(log_prob, weights, allow_unused=True)
        whole = torch.stack([g.square().sum() for g in grads if g is not None]).sum().sqrt()
        torch.testing.assert_close(norm, whole, rtol=1e-5, atol=1e-6)
    assert norms.min() > 0 and len(set(norms.tolist())) == 3
    assert all(w.grad is None for w in weights), "a probe leaves the update's gradients alone"
