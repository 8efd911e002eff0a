"""What a plan counts of a language model's memory: a number for each thing that a run holds."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.language_plan import kept_by_decoder, sizes_of
from mmrl.pipelines.plan import _batch, _with_members, plan_run
from mmrl.policies.generation.counting import Live
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.rollout.nesting import Nested
from mmrl.training.config import TrainingConfig
from tests.policies.language.families.tiny import RECIPES


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


def test_an_engine_s_lagged_policy_is_a_copy_after_full_fine_tuning_alone(bases):
    nlpo = {"engine": "nlpo", "likelihood": "limited", "dtype": "float32"}
    full = counted(bases, **nlpo)
    assert full["copy of the engine"] == full["weights"]
    assert "copy of the engine" not in counted(bases, **nlpo, lora={"rank": 4})


def test_rollouts_are_counted_as_strategies_make_groups():
    for rollout, size in (("preference_pairs", 2), ({"name": "cure", "again": 3}, 32), ("igrpo", 8)):
        config = {"rollout": [rollout], "training": {"prompts_per_step": 4, "group_size": 8}, "modality": "video"}
        strategies = Nested.of(config["rollout"])
        told = _batch(_with_members(read_config(config), strategies))
        assert f"4 prompts x {size} rollouts = {4 * size} rollouts a step" in told[1]


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

    def test_of_a_clip_by_its_frames(self):
        """16 frames of 32 x 32 pixels, two in a patch of 8 x 8: 128 patches, four of which are a token."""
        given = ["policy.sampling.max_frames=16", "policy.sampling.max_pixels=1024", "policy.sampling.min_pixels=1"]

        def said(*more):
            return plan_run(read_config("demo", [*given, *more], "video"))

        model = AutoConfig.from_pretrained(read_config("demo", [], "video").policy_settings().model).vision_config
        assert (model.patch_size, model.temporal_patch_size, model.spatial_merge_size) == (8, 2, 2)
        assert "prompts of 62 tokens with 128 patches each" in said()
        assert "prompts of 46 tokens with 64 patches each" in said(f"policy.sampling.total_pixels={8 * 32 * 32}")
        assert "prompts of 20 tokens with 80 patches each" in said("policy.max_prompt_tokens=20")

    def test_of_layers_that_differ_and_patches_that_are_not_square(self):
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        text = SimpleNamespace(**sizes, intermediate_size=16)
        one, two = kept_by_decoder(text, 1, checkpointing=False), kept_by_decoder(text, 1, checkpointing=True)
        assert (one, two) == (5 * 8 + 2 * (9 * 8 + 2 * 8 + 4 * 16), 5 * 8 + 2 * 8 + 9 * 8 + 2 * 8 + 4 * 16)
        text.intermediate_size = [16, 32]
        assert kept_by_decoder(text, 1, checkpointing=False) == one + 4 * 16
        assert kept_by_decoder(text, 1, checkpointing=True) == two + 4 * 16
        settings = LanguagePolicyConfig(model="m", max_pixels=6 * 14 * 28, max_new_tokens=3)
        shape = SimpleNamespace(vision_config=SimpleNamespace(patch_size=[14, 28]))
        assert sizes_of(settings, TrainingConfig(), shape)[0].patches == 6

    def test_what_the_number_leaves_out_is_said(self, bases):
        def told(more=None, **policy):
            given = {"model": str(bases.of("vlm")), "max_prompt_tokens": 64, **policy}
            return plan_run(read_config({"modality": "vlm", "policy": given, **(more or {})}))

        assert told(max_new_tokens=256).endswith("GiB, with nothing in shards")
        assert told(max_new_tokens=1024).endswith("with nothing in shards; on a CPU so long answers took 1.7 times it")
        one_pass = {"training": {"prompts_per_step": 2, "group_size": 8}}  # a step of one micro-batch goes in parts
        assert told(one_pass, max_new_tokens=1024).endswith("GiB, with nothing in shards")
        assert told(max_new_tokens=1024, gradient_checkpointing=True).endswith("GiB, with nothing in shards")

    @pytest.mark.parametrize("name", ["gemma3n", "gemma4_unified", "internvl"])
    def test_families_whose_configurations_are_of_another_shape(self, name, tmp_path):
        model, processor = RECIPES[name]()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        given = {"model": str(tmp_path), "max_new_tokens": 64, "max_prompt_tokens": 64, "max_pixels": 4096}
        assert "peak of the process: " in plan_run(read_config({"modality": "vlm", "policy": given}))

    def test_of_a_decoder_as_autograd_keeps_them(self):
        """Counted of a real decoder, response tokens by themselves."""
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = Qwen2Config(**sizes, num_hidden_layers=3, vocab_size=16, attn_implementation="sdpa")
        model = Qwen2ForCausalLM(config)
        inputs = torch.randn(1, 512, 64)
        with Live([model]) as live:
            out = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            kept = live.now
        assert out.requires_grad
        assert kept == pytest.approx(4 * kept_by_decoder(config, 512, checkpointing=False), rel=0.1)
