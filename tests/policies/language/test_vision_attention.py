"""Windows and frames of one size in one call: the values and gradients of a call for each."""

import copy

import pytest
import torch

from mmrl.policies.language.fast import vision_attention
from tests.policies.language.scenes import FAMILIES

GRIDS = {
    "one picture": [[1, 8, 8]],
    "windows cut at the edge": [[1, 10, 14]],
    "several pictures": [[1, 4, 6], [1, 12, 8], [1, 4, 6]],
    "a clip": [[3, 6, 8]],
}


@pytest.fixture(params=FAMILIES)
def towers(tiny, request):
    """The tower as transformers runs it, and ours."""
    visual = tiny(request.param)[0].model.visual
    ours = copy.deepcopy(visual)
    vision_attention.install(ours)
    assert (visual.config._attn_implementation, ours.config._attn_implementation) == (
        "sdpa",
        vision_attention.ATTENTION,
    )
    return visual, ours


def run(tower, grid):
    """Features of the same pixels for both towers, and the gradient of a weighted sum of them."""
    config, torch_grid = tower.config, torch.tensor(grid)
    generator = torch.Generator().manual_seed(0)
    channels = getattr(config, "in_channels", None) or config.in_chans
    size = channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.randn(int(torch_grid.prod(-1).sum()), size, generator=generator)
    features = tower(pixels, grid_thw=torch_grid).last_hidden_state
    (features * torch.randn(features.shape, generator=generator)).sum().backward()
    return features.detach(), torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_equals_a_call_for_each_window(towers, grid):
    (one, one_grad), (other, other_grad) = (run(tower, grid) for tower in towers)
    assert torch.allclose(one, other, atol=1e-5)
    assert (one_grad - other_grad).norm() < 1e-5 * one_grad.norm()


def test_one_call_for_each_size(monkeypatch):
    """Windows of 2, 3, 2 and 2 tokens and an empty one: two calls, each token in its own place."""
    calls, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *rest, **options):
        calls.append(tuple(query.shape))
        return kernel(query, *rest, **options)

    monkeypatch.setattr(vision_attention.F, "scaled_dot_product_attention", counted)
    q, k, v = torch.randn(3, 1, 4, 9, 8)
    out, _ = vision_attention.attention(
        None, q, k, v, None, scaling=0.3, cu_seq_lens_q=torch.tensor([0, 2, 5, 7, 7, 9]), is_causal=False
    )
    assert calls == [(3, 4, 2, 8), (1, 4, 3, 8)]
    for start, end in ((0, 2), (2, 5), (5, 7), (7, 9)):
        alone = kernel(*(t[:, :, start:end] for t in (q, k, v)), scale=0.3).transpose(1, 2)
        assert torch.allclose(out[:, start:end], alone, atol=1e-6)


def test_another_attention_stays(tiny):
    visual = tiny("qwen2_5_vl")[0].model.visual
    visual.set_attn_implementation("eager")
    vision_attention.install(visual)
    assert visual.config._attn_implementation == "eager"
