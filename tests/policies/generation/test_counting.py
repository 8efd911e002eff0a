"""Memory counted on the meta device against what the allocator hands out, and conditions of hollow pipelines."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mmrl.policies.adapters import LoraConfig, attach_lora
from mmrl.policies.generation.counting import Live, bytes_of, count_passes
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.hollow import Hollow, blank, hollow_pipeline
from tests.policies.generation.families.cases import BY_NAME, PROMPTS

MEASURED = ("FLUX.1-dev", "Wan 2.1 text", "HunyuanVideo")
PAIRS = 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a variant's tiny pipeline, written once."""
    folders: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in folders:
            folders[name] = str(tmp_path_factory.mktemp("pipeline"))
            BY_NAME[name].pipeline().save_pretrained(folders[name])
        return folders[name]

    return folder


def hollow(folder: str, name: str):
    pipeline, models = hollow_pipeline(folder, torch.float32)
    generator = generator_of(pipeline, BY_NAME[name].asked)
    with blank():
        return generator, models, generator.conditions(PROMPTS[0], BY_NAME[name].media)


def adapted(module, generator, checkpointing: bool):
    if checkpointing:
        module.enable_gradient_checkpointing()
    module.train().requires_grad_(False)
    return attach_lora(module, LoraConfig(rank=4, targets=generator.targets(module))).train()


def allocated(function) -> int:
    """The most bytes the allocator had handed out at once, kernels' own included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MEASURED)
def test_the_peak_of_a_trained_step_is_within_15_percent_of_the_measured_one(name, checkpointing, saved):
    case = BY_NAME[name]
    generator = generator_of(case.pipeline(), case.asked)
    module = adapted(generator.pipeline.transformer, generator, checkpointing)
    conditions = generator.conditions(PROMPTS[0], case.media)
    state, times = torch.randn(PAIRS, *generator.state_shape()), torch.rand(PAIRS)

    def step() -> None:
        generator._once(module, state, times, [conditions] * PAIRS).square().mean().backward()

    step()  # gradients are there from now on
    measured = allocated(step)
    other, models, shapes = hollow(saved(name), name)
    with torch.device("meta"):
        counted = count_passes(other, adapted(models["transformer"], other, checkpointing), shapes, PAIRS)
    assert counted.trained == pytest.approx(measured, rel=0.15)
    assert 0 < counted.saved < counted.trained and 0 < counted.sampled < counted.trained


@pytest.mark.parametrize("name", ["SD3", "Qwen-Image", "FLUX.2-dev edit, two images", "Wan 2.2 TI2V-5B image", "SANA"])
def test_a_hollow_pipeline_asks_with_the_shapes_of_the_real_one(name, saved):
    case = BY_NAME[name]
    real = generator_of(case.pipeline(), case.asked).conditions(PROMPTS[0], case.media)
    _, models, found = hollow(saved(name), name)

    def shapes(conditions):
        return {n: tuple(v.shape) for n, v in conditions.items() if isinstance(v, torch.Tensor)}

    assert shapes(found) == shapes(real)
    assert all(p.is_meta for model in models.values() for p in model.parameters())


def test_tensors_are_followed_to_their_end():
    with Live() as live:
        first = torch.empty(1000)
        second = first + 1
        view = second[10:]
        del first
        third = view * 2
    assert live.now == 4 * (1000 + 990) and live.most == 4 * (1000 + 1000)
    assert len(third) == 990


def test_weights_are_not_counted_as_activations():
    layer = torch.nn.Linear(100, 10, bias=False)
    with Live([layer]) as live:
        out = layer(torch.ones(2, 100))
    assert out.shape == (2, 10) and live.now <= 4 * (200 + 20) < bytes_of(layer)


def test_a_hollow_model_answers_with_zeros_of_the_right_shape():
    with torch.device("meta"):
        real = torch.nn.Linear(3, 5)
    model = Hollow(real)
    assert model(torch.ones(2, 3)).tolist() == [[0.0] * 5] * 2
    assert model.device.type == "cpu" and model.in_features == 3
