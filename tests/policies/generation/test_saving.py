"""What a flow policy saves loads with plain diffusers and peft, in a process where mmrl cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.errors import ConfigError
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from tests.policies.generation.tiny import flow_pipeline, flow_policy, flow_requests, nudge

KEY = Key(1, 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """The tiny pipeline on disk."""
    folder = tmp_path_factory.mktemp("base")
    flow_pipeline().save_pretrained(folder)
    return str(folder)


def probe(policy: FlowPolicy) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs of one transformer call, and its answer."""
    inputs = {
        "hidden_states": Key(5).normal(2, *policy.shape),
        "timestep": torch.tensor([700.0, 300.0]),
        "encoder_hidden_states": Key(6).normal(2, 4, policy.inner.transformer.config.joint_attention_dim),
        "pooled_projections": Key(7).normal(2, policy.inner.transformer.config.pooled_projection_dim),
    }
    with torch.no_grad():
        return inputs, policy.inner.transformer(**inputs, return_dict=False)[0].contiguous()


SCRIPT = """
    import json, sys

    # An environment's start-up file may have imported mmrl's torchvision repair: forget it.
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("mmrl")]
    for name in [n for n in sys.modules if n.partition(".")[0] == "mmrl"]:
        del sys.modules[name]
    sys.modules["mmrl"] = None  # importing it raises
    import torch
    if torch.version.cuda is None:  # a CUDA build of torchvision beside a CPU torch lacks two operators
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import peft
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from safetensors.torch import load_file

    def pipeline():
        return StableDiffusion3Pipeline.from_pretrained("base")
    def with_lora():
        made = pipeline()
        made.load_lora_weights("adapter")
        return made
    loaded = {
        "adapter/peft": lambda: peft.PeftModel.from_pretrained(pipeline().transformer, "adapter"),
        "adapter/diffusers": lambda: with_lora().transformer,
        "merged": lambda: StableDiffusion3Pipeline.from_pretrained("merged").transformer,
        "full": lambda: SD3Transformer2DModel.from_pretrained("full"),
    }
    gaps = {}
    for name, load in loaded.items():
        tensors = load_file(name.split("/")[0] + ".safetensors")
        expected = tensors.pop("expected")
        with torch.no_grad():
            answer = load().eval()(**tensors, return_dict=False)[0]
        gaps[name] = (answer - expected).abs().max().item()
    print(json.dumps(gaps))
"""


def test_everything_saved_loads_without_us(base, tmp_path):
    """An adapter through peft and through diffusers, a merged pipeline, full transformer weights."""
    adapted, full = flow_policy(lora={"rank": 4, "alpha": 12}), flow_policy(lora=None)
    (tmp_path / "base").symlink_to(base)
    for name, policy in {"adapter": adapted, "merged": adapted, "full": full}.items():
        nudge(policy, 0.1)
        policy.save_pretrained(tmp_path / name, merged=name == "merged")
        inputs, expected = probe(policy)
        save_file({**inputs, "expected": expected}, tmp_path / f"{name}.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert set(gaps) == {"adapter/peft", "adapter/diffusers", "merged", "full"}
    assert all(gap < 1e-5 for gap in gaps.values()), gaps
    assert (probe(adapted)[1] - probe(flow_policy())[1]).abs().max() > 0.05


class TestStartingAgain:
    def config(self, base: str, **options) -> FlowPolicyConfig:
        return FlowPolicyConfig(model=base, steps=4, max_sequence_length=16, **options)

    def test_from_an_adapter_which_is_then_the_reference(self, base, tmp_path):
        policy = flow_policy(lora={"rank": 4})
        nudge(policy, 0.1)
        policy.save_pretrained(tmp_path / "out")
        again = FlowPolicy.from_config(self.config(base, adapter=str(tmp_path / "out")))
        assert torch.equal(probe(again)[1], probe(policy)[1])
        rollouts = again.rollout(flow_requests(), KEY)
        nudge(again, 0.1)
        seen = again.evaluate(rollouts, weights="reference")
        torch.testing.assert_close(seen.log_probs, rollouts.old_log_probs, rtol=0, atol=1e-5)
        again.save_pretrained(tmp_path / "more")
        keys = load_file(tmp_path / "more" / "adapter_model.safetensors").keys()
        assert keys == load_file(tmp_path / "out" / "adapter_model.safetensors").keys()

    def test_from_full_weights(self, base, tmp_path):
        policy = flow_policy(lora=None)
        nudge(policy, 0.1)
        policy.save_pretrained(tmp_path / "out")
        again = FlowPolicy.from_config(self.config(base, lora=None, transformer=str(tmp_path / "out")))
        assert torch.equal(probe(again)[1], probe(policy)[1])

    def test_a_merged_pipeline_is_a_model(self, base, tmp_path):
        policy = flow_policy(lora={"rank": 4})
        nudge(policy, 0.1)
        before = probe(policy)[1]
        policy.save_pretrained(tmp_path / "out", merged=True)
        assert torch.equal(probe(policy)[1], before)  # merging a copy leaves the policy as it was
        again = FlowPolicy.from_config(self.config(str(tmp_path / "out")))
        torch.testing.assert_close(probe(again)[1], before, rtol=1e-4, atol=1e-4)

    def test_the_reference_of_a_resumed_run_is_where_it_began(self, base):
        policy = FlowPolicy.from_config(self.config(base, lora=None))
        start = {n: p.detach().clone() for n, p in policy.inner.transformer.named_parameters()}
        nudge(policy, 0.1)
        resumed = FlowPolicy.from_config(self.config(base, lora=None))
        resumed.load_trainable_state(policy.trainable_state())
        assert torch.equal(probe(resumed)[1], probe(policy)[1])
        for name, parameter in resumed._frozen_reference["transformer"].named_parameters():
            assert torch.equal(parameter, start[name]) and not parameter.requires_grad

    def test_text_is_no_longer_than_its_tokenizers_take(self, base, capsys):
        """They take 16, their pipeline's call 256: most of a step would be padding."""
        assert FlowPolicy.from_config(FlowPolicyConfig(model=base, steps=4)).config.max_sequence_length == 16
        assert "texts are padded to 16 tokens" in capsys.readouterr().err
        asked = FlowPolicy.from_config(FlowPolicyConfig(model=base, steps=4, max_sequence_length=20))
        assert asked.config.max_sequence_length == 20 and not capsys.readouterr().err

    def test_what_is_not_there_is_named(self, base, tmp_path):
        with pytest.raises(ConfigError, match="model: cannot load"):
            FlowPolicy.from_config(self.config(str(tmp_path / "nowhere")))
        with pytest.raises(ConfigError, match="adapter"):
            FlowPolicy.from_config(self.config(base, adapter=str(tmp_path)))
        with pytest.raises(ConfigError, match=r"Name it in policy\.transformer"):
            FlowPolicy.from_config(self.config(f"{base}/transformer"))


def test_a_pipeline_without_its_largest_text_encoder_trains_and_is_saved(tmp_path):
    """Stable Diffusion 3 is often loaded without its T5; diffusers reloads only what names every absent part."""
    whole = flow_pipeline()
    parts = {**whole.components, "text_encoder_3": None, "tokenizer_3": None}
    type(whole)(**parts).save_pretrained(tmp_path / "base")
    policy = FlowPolicy.from_config(FlowPolicyConfig(model=str(tmp_path / "base"), max_sequence_length=16, steps=4))
    rollouts = policy.rollout(flow_requests(2, 1), KEY)
    with torch.no_grad():
        assert torch.allclose(policy.evaluate(rollouts).log_probs, rollouts.old_log_probs, atol=1e-5)
    policy.save_pretrained(tmp_path / "merged", merged=True)
    again = FlowPolicy.from_config(FlowPolicyConfig(model=str(tmp_path / "merged"), max_sequence_length=16, steps=4))
    assert again.pipeline.text_encoder_3 is None
