"""A language policy on CUDA finds what it finds on the CPU: log-probs, gradients, a step, by every fast path."""

import pytest
import torch

from mmrl.media import Clip  # noqa: F401  (mmrl before transformers)
from mmrl.policies.adapters import LoraConfig
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.training.optimizer import MasterAdamW, OptimizerConfig

pytestmark = pytest.mark.gpu
FAMILIES = ["qwen2_5_vl", "qwen3_vl"]


def asked(count: int = 3) -> list[Request]:
    """Two prompts with unlike pictures and one without."""
    from PIL import Image

    prompts = []
    for index in range(2):
        picture = Image.new("RGB", (64 + 32 * index, 64), (200 * index, 40, 200 - 200 * index))
        content = [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]
        prompts.append(Prompt(f"p{index}", [{"role": "user", "content": content}], [picture]))
    prompts.append(Prompt("p2", [{"role": "user", "content": "How many are four?"}]))
    return [Request(p, count, group=g) for g, p in enumerate(prompts)]


def scored(policy, rollouts):
    """(B, T) log-probs on the CPU, and {name: gradient} of a sum that weighs each token differently."""
    policy.module.zero_grad()
    log_probs = policy.evaluate(rollouts).log_probs
    weights = torch.sin(torch.arange(rollouts.mask.numel()).view(rollouts.mask.shape).float()) * rollouts.mask.cpu()
    (weights.to(log_probs.device) * log_probs).sum().backward()
    gradients = {n: p.grad.cpu().float() for n, p in policy.module.named_parameters() if p.grad is not None}
    return log_probs.detach().cpu(), gradients


def apart(one: dict, other: dict) -> float:
    """Relative distance of two gradients."""
    assert one.keys() == other.keys()
    flat, reference = (torch.cat([g[n].flatten() for n in sorted(one)]) for g in (one, other))
    return float((flat - reference).norm() / reference.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["packed", "two_calls", "off"])
def test_log_probs_and_gradients_are_the_cpus(made, device, family, way):
    here, there = made(family, "cpu", shared_prompt="off"), made(family, device, shared_prompt=way)
    rollouts = here.rollout(asked(), Key(0))
    (log_probs, gradients), (expected, reference) = scored(there, rollouts), scored(here, rollouts)
    assert (log_probs - expected).abs().max() < 2e-4
    assert apart(gradients, reference) < 1e-3
    assert expected.abs().max() > 0.1  # nearly uniform outputs would agree whatever was computed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_are_drawn(made, device, family):
    """Draws come from keys, not from the device; the decoding kernels (shared prefix, cascade) agree with scoring."""
    here, there = (made(family, where).rollout(asked(), Key(3)) for where in ("cpu", device))
    same = (here.actions == there.actions.cpu()).all(1)
    assert same.float().mean() >= 8 / 9  # one row may part where two tokens are within rounding
    assert (here.old_log_probs - there.old_log_probs.cpu())[same].abs().max() < 2e-4


def test_checkpointed_activations_change_nothing(made, device):
    plain, less = made("qwen2_5_vl", device), made("qwen2_5_vl", device, gradient_checkpointing=True)
    rollouts = plain.rollout(asked(), Key(0))
    (log_probs, gradients), (expected, reference) = scored(less, rollouts), scored(plain, rollouts)
    assert (log_probs - expected).abs().max() < 1e-5 and apart(gradients, reference) < 1e-4


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_bfloat16_rollout_and_training_agree(made, device, lora):
    policy = made("qwen2_5_vl", device, dtype="bfloat16", lora=lora)
    rollouts = policy.rollout(asked(), Key(0))
    log_probs, gradients = scored(policy, rollouts)
    gap = (log_probs - rollouts.old_log_probs.cpu()).abs()[rollouts.mask.cpu()]
    assert gap.mean() < 0.03 and gradients


def test_an_optimizer_step_is_the_cpus(made, device):
    """From the same gradients: float32 weights, their moments, and how many moved."""
    moved = {}
    for where in ("cpu", device):
        policy = made("qwen2_5_vl", where)
        parameters = [p for p in policy.module.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(where)
        optimizer = MasterAdamW(parameters, lr=1e-3, weight_decay=0.01)
        optimizer.step()
        moved[where] = torch.cat([p.detach().cpu().flatten() for p in parameters]), int(optimizer.moved.changed)
    (here, count), (there, other) = moved["cpu"], moved[device]
    assert (here - there).abs().max() < 1e-6 and abs(count - other) <= 1e-4 * count


@pytest.mark.parametrize("kept", [{"name": "fused"}, {"offload": True}], ids=["fused", "offload"])
def test_other_ways_to_keep_the_optimizers_state(made, device, kept):
    """The same step to rounding; offloaded, nothing of it is on the device."""
    weights = {}
    for name, options in (("plain", {}), ("other", kept)):
        policy = made("qwen2_5_vl", device, dtype="bfloat16")
        parameters = [p for p in policy.module.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        optimizer = MasterAdamW(parameters, OptimizerConfig(**options), lr=1e-3)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
            optimizer.step()
        weights[name] = torch.cat([optimizer.state[p]["master"].cpu().flatten() for p in parameters])
        assert not options.get("offload") or optimizer.state[parameters[0]]["exp_avg"].device.type == "cpu"
    assert (weights["plain"] - weights["other"]).abs().max() < 1e-6


def test_memory_is_returned(made, device):
    """What a step took is free again once the policy is gone."""
    if device == "cpu":
        pytest.skip("memory of the device: the CPU has none that is counted")
    import gc

    def taken() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    scored_once = made("qwen2_5_vl", device)
    scored(scored_once, scored_once.rollout(asked(), Key(0)))  # workspaces of the libraries stay: make them now
    del scored_once
    before = taken()
    policy = made("qwen2_5_vl", device)
    scored(policy, policy.rollout(asked(), Key(0)))
    assert taken() > before
    del policy
    assert taken() <= before
