"""Tests behind `make gpu`: CUDA beside the CPU. `MMRL_GPU_TESTS=cpu` runs the same lines on the CPU alone."""

import os

import pytest
import torch

from mmrl.pipelines.bases.models import tiny_vlm


@pytest.fixture(scope="session")
def device():
    """What is compared with the CPU."""
    name = os.environ.get("MMRL_GPU_TESTS", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: nothing of CUDA was compared")
    return name


@pytest.fixture
def made(device):
    """`made(family, device, **options)` -> a vision policy on a tiny model with the same weights each time."""
    from mmrl.policies.language.config import LanguagePolicyConfig
    from mmrl.policies.language.vision import VisionPolicy
    from mmrl.precision import DTYPES

    def policy(family: str, where: str, **options):
        config = LanguagePolicyConfig(model="tiny", max_new_tokens=6, **options)
        model, processor = tiny_vlm(family, 0)
        built = VisionPolicy(model.to(DTYPES[config.dtype]), processor, config)
        built.module.to(where)
        return built

    return policy
