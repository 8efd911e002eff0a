"""ResiP: a network beside the last layer that begins as nothing, and everything that holds for adapters."""

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.residual import head_class
from mmrl.randomness import Key
from tests.policies.generation.tiny import flow_pipeline, flow_policy, flow_requests, nudge

HEAD = {"rank": 8, "alpha": 4, "residual": True}


def head_policy(**changes):
    return flow_policy(lora={**HEAD, **changes.pop("lora", {})}, **changes)


def test_worked_numbers():
    """In 1 + out 1, width 1: A = (1, 2), B = 3, alpha / r = .5; h = 2, v = 4: 4 + .5 * 3 silu(10)."""
    import peft

    layer = torch.nn.Linear(1, 1, bias=False)
    settings = peft.LoraConfig(r=1, lora_alpha=0.5, target_modules=["0"])
    settings._register_custom_module({torch.nn.Linear: head_class()})
    model = peft.get_peft_model(torch.nn.Sequential(layer), settings)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        head = model.base_model.model[0]
        head.lora_A["default"].weight.copy_(torch.tensor([[1.0, 2.0]]))
        assert model(torch.tensor([[2.0]])).item() == 4, "nothing yet"
        head.lora_B["default"].weight.fill_(3.0)
        assert model(torch.tensor([[2.0]])).item() == pytest.approx(4 + 1.5 * 10 / (1 + torch.e**-10))
        with model.disable_adapter():
            assert model(torch.tensor([[2.0]])).item() == 4


def test_it_begins_as_the_base_and_the_head_alone_trains():
    base, policy = flow_policy(), head_policy()
    rows, same = policy.rollout(flow_requests(), Key(1)), base.rollout(flow_requests(), Key(1))
    torch.testing.assert_close(rows.old_log_probs, same.old_log_probs, atol=1e-6, rtol=0)
    trained = [n for n, p in policy.inner.named_parameters() if p.requires_grad]
    assert len(trained) == 2 and all(".proj_out.lora_" in name for name in trained)
    nudge(policy, 0.3)
    moved = policy.rollout(flow_requests(), Key(1))
    found = policy.evaluate(moved).log_probs
    torch.testing.assert_close(found.detach(), moved.old_log_probs, atol=2e-4, rtol=0)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.inner.parameters() if p.requires_grad)
    with torch.no_grad():
        reference = policy.evaluate(moved, weights="reference").log_probs
        torch.testing.assert_close(reference, base.evaluate(moved).log_probs, atol=1e-5, rtol=0)
    assert (reference - moved.old_log_probs).abs().max() > 1e-3


def test_it_is_saved_and_a_run_goes_on_from_it(tmp_path):
    policy = head_policy()
    nudge(policy, 0.3)
    rows = policy.rollout(flow_requests(), Key(1))
    policy.save_pretrained(tmp_path / "head")
    assert not list((tmp_path / "head").glob("pytorch_lora*")), "diffusers would read it as LoRA"
    again = head_policy(adapter=str(tmp_path / "head"))
    with torch.no_grad():
        torch.testing.assert_close(again.evaluate(rows).log_probs, rows.old_log_probs, atol=2e-4, rtol=0)
    with pytest.raises(ConfigError, match="does not fit this model"):
        flow_policy(adapter=str(tmp_path / "head"))
    with pytest.raises(PolicyError, match="cannot be folded in"):
        policy.save_pretrained(tmp_path / "merged", merged=True)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="leave it out"):
        head_policy(lora={"dora": True})
    with pytest.raises(ConfigError, match=r"pos_embed\.proj is a Conv2d"):
        assert isinstance(flow_pipeline().transformer.pos_embed.proj, torch.nn.Conv2d)
        head_policy(lora={"targets": ["proj"]})
