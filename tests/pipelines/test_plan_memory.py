"""What a plan counts of a language model's memory: a number for each thing that a run holds."""

import re

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.plan import plan_run


def counted(bases, **policy) -> dict[str, str]:
    config = read_config({"modality": "vlm", "policy": {"model": str(bases.of("vlm")), **policy}})
    memory = plan_run(config).split("\nmemory\n")[1]
    return dict(re.findall(r"^  ([\w ]+): ([\d.]+) MiB$", memory, re.MULTILINE))


def test_weights_below_float32_have_master_copies_and_adapters_have_none(bases):
    full = counted(bases, dtype="float32")
    assert set(full) == {"weights", "gradients", "AdamW moments"}
    assert float(full["AdamW moments"]) / float(full["weights"]) == 2
    half = counted(bases, dtype="bfloat16")
    assert half["float32 master copies"] == half["gradients"] == full["weights"]
    assert "float32 master copies" not in counted(bases, dtype="bfloat16", lora={"rank": 4})


def test_a_folder_that_a_run_would_refuse_is_refused_by_its_plan(bases):
    with pytest.raises(ConfigError, match="model: cannot load"):
        counted(bases, model=str(bases.of("flow")))


def peak_of(bases, **policy) -> float:
    """MiB"""
    given = {"model": str(bases.of("vlm")), "max_prompt_tokens": 64, "max_new_tokens": 4096, **policy}
    told = plan_run(read_config({"modality": "vlm", "policy": given}))
    size, unit = re.search(r"peak of the process: ([\d.]+) (MiB|GiB)", told).groups()
    return float(size) * {"MiB": 1, "GiB": 1024}[unit]


class TestActivations:
    def test_what_bounds_a_prompt_is_asked_for(self, bases):
        told = plan_run(read_config({"modality": "vlm", "policy": {"model": str(bases.of("vlm"))}}))
        assert "set policy.max_prompt_tokens or policy.max_pixels to have them counted" in told

    def test_they_grow_with_the_response_and_checkpointing_saves_most_of_them(self, bases):
        full, half = peak_of(bases), peak_of(bases, max_new_tokens=2048)
        again = peak_of(bases, gradient_checkpointing=True)
        least = peak_of(bases, max_new_tokens=1)
        assert least < half < full and (full - least) / (half - least) == pytest.approx(2, rel=0.05)
        assert again - least < 0.7 * (full - least)

    def test_of_a_decoder_as_autograd_keeps_them(self):
        """Counted of a real decoder, response tokens by themselves."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from mmrl.pipelines.language_plan import kept_by_decoder
        from mmrl.policies.generation.counting import Live

        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = Qwen2Config(**sizes, num_hidden_layers=3, vocab_size=16, attn_implementation="sdpa")
        model = Qwen2ForCausalLM(config)
        inputs = torch.randn(1, 512, 64)
        with Live([model]) as live:
            out = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            kept = live.now
        assert out.requires_grad
        assert kept == pytest.approx(4 * kept_by_decoder(config, 512, checkpointing=False), rel=0.1)
