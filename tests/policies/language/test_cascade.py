"""Responses over one copy of the prompt's keys: the values and gradients of a copy for each response."""

import pytest
import torch

from mmrl.policies.language.fast import cascade, shared_prompt
from mmrl.policies.language.fast.shared_prompt import Group

PROMPT, SIZE = 13, 8


def tokens(lengths, heads, dtype=torch.float32):
    """Queries, keys and values of responses and prompt, as slices of a packed row are laid out."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(heads[0], sum(lengths))] + [(heads[1], sum(lengths))] * 2 + [(1, heads[1], PROMPT)] * 2
    return [torch.randn(*s, SIZE, generator=generator).to(dtype).requires_grad_() for s in shapes]


def attended(lengths, parts):
    return shared_prompt._response_attention(Group(0, PROMPT, lengths), *parts, SIZE**-0.5, None)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [1], [4, 1, 7]], ids=str)
def test_equals_copied_keys(monkeypatch, lengths, heads):
    results = []
    for kernels in (cascade.DEVICES, frozenset()):
        monkeypatch.setattr(cascade, "DEVICES", kernels)
        parts = tokens(lengths, heads)
        out = attended(lengths, parts)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        results.append([out, *torch.autograd.grad((weight * out).sum(), parts)])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("lengths", [[3, 3], [2, 4, 1]], ids=str)
def test_gradient_against_finite_differences(lengths):
    parts = tokens(lengths, (4, 2), torch.float64)
    assert torch.autograd.gradcheck(lambda *given: attended(lengths, given), parts)


def test_padding_takes_no_part():
    """Scores so large that a weight left on a padded place would overflow."""
    parts = [(100 * t).detach().requires_grad_() for t in tokens([1, 6], (2, 2))]
    out = attended([1, 6], parts)
    gradients = torch.autograd.grad(out.sum(), parts)
    assert all(t.isfinite().all() for t in (out, *gradients))


def test_no_kernel_for_mixed_types():
    parts = tokens([2], (2, 2))
    assert cascade.offered(*parts)
    assert not cascade.offered(*parts[:3], *(t.bfloat16() for t in parts[3:]))
