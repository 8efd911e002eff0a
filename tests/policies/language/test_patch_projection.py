"""The patch embedding as a matrix product: the convolution's values, gradients and weights."""

import copy

import pytest
import torch
from torch import nn

from mmrl.policies.language.fast.patch_projection import PatchProjection, project_patches


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def towers(tiny, request):
    """The tower as transformers makes it, and ours."""
    visual = tiny(request.param)[0].model.visual
    ours = copy.deepcopy(visual)
    project_patches(ours)
    return visual, ours


def test_values_and_gradients_are_those_of_the_convolution(towers):
    plain, ours = towers
    patches = torch.randn(12, plain.patch_embed.proj.weight[0].numel())
    weight = torch.randn(12, plain.patch_embed.proj.out_channels)
    outputs = [tower.patch_embed(patches) for tower in towers]
    for output in outputs:
        (weight * output).sum().backward()
    assert torch.allclose(*outputs, atol=1e-5) and isinstance(ours.patch_embed.proj, PatchProjection)
    for one, other in zip(plain.patch_embed.parameters(), ours.patch_embed.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


def test_checkpoints_stay_the_same(towers):
    states = [{name: value.shape for name, value in tower.state_dict().items()} for tower in towers]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "options", [{"stride": 1}, {"stride": (2, 4, 4), "padding": 1}, {"stride": (2, 4, 4), "groups": 3}]
)
def test_a_convolution_that_slides_is_left_alone(options):
    tower = nn.Module()
    tower.patch_embed = nn.Module()
    tower.patch_embed.proj = nn.Conv3d(3, 6, (2, 4, 4), **options)
    project_patches(tower)
    assert type(tower.patch_embed.proj) is nn.Conv3d


def test_a_tower_without_patches_is_left_alone():
    project_patches(nn.Linear(2, 2))


def test_the_policy_uses_it(policies, family="qwen3_vl"):
    assert isinstance(policies[family].inner.core.model.visual.patch_embed.proj, PatchProjection)
