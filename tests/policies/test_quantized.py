"""Packed bases under adapters: what is packed, what is refused, a real run, and what leaves it."""

import json
from copy import deepcopy

import pytest
import torch
from torch import nn

from mmrl import FlowPipeline, VLMPipeline
from mmrl.errors import ConfigError
from mmrl.pipelines.bases.models import tiny_flow, tiny_vlm
from mmrl.pipelines.config import read_config
from mmrl.pipelines.plan import plan_run
from mmrl.pipelines.run import check_config
from mmrl.policies import quantized
from mmrl.policies.language.config import LanguagePolicyConfig, packed_parts
from mmrl.training.tracking import read_metrics

LORA = {"rank": 4, "alpha": 8}
ONE = {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-2}
ASKED = [{"prompt": f"say {word}"} for word in ("red", "blue", "green", "two")]


def vowels(completions):
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def redness(completions):
    return [image.convert("RGB").getpixel((0, 0))[0] / 255 for image in completions]


class TestRefused:
    @pytest.mark.parametrize(("modality", "off"), [("vlm", "policy.lora=null"), ("flow", "policy.lora=null")])
    def test_without_adapters(self, modality, off):
        config = read_config("demo", ["policy.quantize=nf4", off], modality)
        with pytest.raises(ConfigError, match="packed weights do not train; give adapters"):
            check_config(config)

    def test_beside_an_engine_with_weights_of_its_own(self):
        given = ["policy.quantize=nf4", "policy.lora.rank=4", "policy.engine=vllm", "policy.old_log_probs=trainer"]
        with pytest.raises(ConfigError, match=r"policy\.engine=vllm: the engine would be handed packed weights"):
            check_config(read_config("demo", given, "vlm"))

    def test_an_unknown_kind(self):
        with pytest.raises(ConfigError, match=r"policy\.quantize: .*'nf4' or 'int8'.*'nf3'"):
            read_config("demo", ["policy.quantize=nf3"], "vlm").policy_settings()

    @pytest.mark.parametrize(("pipeline", "modality"), [(VLMPipeline, "tiny_vlm"), (FlowPipeline, "tiny_flow")])
    def test_without_the_package(self, monkeypatch, pipeline, modality):
        monkeypatch.setattr(quantized, "find_spec", lambda name: None)
        with pytest.raises(
            ConfigError, match=r"needs bitsandbytes, which is not installed: pip install 'mmrl\[qlora\]"
        ):
            pipeline.from_pretrained(f"asset:{modality}", quantize="nf4", lora=LORA)


class TestPlan:
    def test_it_counts_without_the_package(self):
        """Every linear layer of the decoder alone, .516 bytes a weight in place of 4."""
        model, _ = tiny_vlm("qwen3_vl")
        layers = [m for m in model.get_decoder().modules() if isinstance(m, nn.Linear)]
        saved = quantized.bytes_saved("nf4", packed_parts(model), 4)
        assert saved == int(sum(layer.weight.numel() for layer in layers) * (4 - 0.516))
        told = plan_run(read_config("demo", ["policy.quantize=nf4", "policy.lora.rank=4"], "vlm"))
        assert "nf4: the text decoder's linear layers packed," in told

    def test_of_a_generator_too(self):
        given = ["policy.lora.rank=4", "policy.lora.alpha=8"]
        plain, packed = (
            plan_run(read_config("demo", [*given, *more], "flow")) for more in ([], ["policy.quantize=nf4"])
        )
        weights = [text.split("transformer ")[1].split(" MiB")[0] for text in (plain, packed)]
        assert float(weights[1]) < 0.4 * float(weights[0])


class TestRuns:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("bitsandbytes", reason="no bitsandbytes here: no packed layer was run")

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_a_language_model_learns_on_it(self, tmp_path, kind):
        """The self-check holds rollout and scoring to the same packed layers; nothing but adapters moves."""
        pipe = VLMPipeline.from_pretrained("asset:tiny_vlm", quantize=kind, lora=LORA, max_new_tokens=6)
        packed = {n for n, m in pipe.policy.module.named_modules() if quantized.is_packed(m) and "base_layer" in n}
        assert packed and not any("visual" in name or "lm_head" in name for name in packed)
        pipe.train(ASKED, [vowels], training=ONE, run_dir=tmp_path / "run")
        assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["gradient_norm"] > 0
        pipe.save_pretrained(tmp_path / "adapter")
        settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert settings["r"] == 4
        again = VLMPipeline.from_pretrained(
            "asset:tiny_vlm", quantize=kind, adapter=str(tmp_path / "adapter"), max_new_tokens=6
        )
        assert again.generate(ASKED) == pipe.generate(ASKED)

    def test_gradients_are_those_of_the_same_values_unpacked(self):
        """Also behind an evaluation, and through single tokens: the kernels of inference have no gradient."""
        model, _ = tiny_vlm("qwen3_vl")
        settings = LanguagePolicyConfig(model="tiny", quantize="nf4", lora=LORA)
        packed = quantized.pack(model, packed_parts(model), settings)
        plain = deepcopy(packed)
        quantized.unpack(plain)
        for length in (1, 5):
            found = []
            for each in (packed, plain):
                ids = torch.arange(3, 3 + length)[None]
                with torch.no_grad():
                    each.eval()(input_ids=ids)
                shown = each.get_input_embeddings()(ids).detach().requires_grad_()
                each(inputs_embeds=shown).logits.square().sum().backward()
                found.append(shown.grad)
            assert found[1].abs().max() > 1e-3
            assert torch.allclose(*found, rtol=1e-3, atol=1e-5 * float(found[1].abs().max()))

        with pytest.raises(ConfigError, match="FSDP2: packed weights are not cut into shards"):
            quantized.refuse_shards(packed, sharded=True)
        quantized.refuse_shards(plain, sharded=True)

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_a_merged_export_is_plain_and_says_what_the_packed_model_says(self, tmp_path, kind):
        pipe = VLMPipeline.from_pretrained("asset:tiny_vlm", quantize=kind, lora=LORA, max_new_tokens=6)
        pipe.train(ASKED, [vowels], training=ONE, run_dir=tmp_path / "run")
        pipe.save_pretrained(tmp_path / "whole", merged=True)
        assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())
        plain = VLMPipeline.from_pretrained(tmp_path / "whole", max_new_tokens=6)
        assert not any(quantized.is_packed(m) for m in plain.policy.module.modules())
        if kind == "nf4":  # int8 rounds activations too, so that its answers may part
            assert plain.generate(ASKED) == pipe.generate(ASKED)

    def test_a_generator_learns_on_it(self, tmp_path):
        tiny_flow(seed=0).save_pretrained(tmp_path / "base")
        pipe = FlowPipeline.from_pretrained(
            tmp_path / "base", quantize="nf4", lora=LORA, max_sequence_length=16, steps=4, eval_steps=4
        )
        assert any(quantized.is_packed(m) for m in pipe.policy.module.modules())
        pipe.train(
            [{"prompt": "a red circle"}, {"prompt": "a blue circle"}], [redness], training=ONE, run_dir=tmp_path / "run"
        )
        pipe.save_pretrained(tmp_path / "whole", merged=True)
        plain = FlowPipeline.from_pretrained(
            tmp_path / "whole", lora=None, max_sequence_length=16, steps=4, eval_steps=4
        )
        (one,), (other,) = (p.generate([{"prompt": "a red circle"}], seed=1)[0] for p in (pipe, plain))
        gap = torch.tensor(
            [abs(a - b) for a, b in zip(one.convert("L").getdata(), other.convert("L").getdata(), strict=True)]
        )
        assert gap.float().mean() < 2
