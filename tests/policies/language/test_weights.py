"""Adapters, the reference, resumable state, and exports that load without mmrl."""

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from tests.policies.language.scenes import mixed_prompts, requests

LORA = {"rank": 4, "alpha": 8.0}


def step(policy, rollouts, rate: float = 0.05) -> None:
    """One plain gradient step on everything that trains."""
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    policy.evaluate(rollouts).log_probs.mean().backward()
    with torch.no_grad():
        for p in parameters:
            if p.grad is not None:
                p -= rate * p.grad
    policy.module.zero_grad(set_to_none=True)


def score(policy, rollouts, weights: str = "old") -> torch.Tensor:
    return policy.evaluate(rollouts, weights=weights).log_probs


@pytest.fixture(params=[None, LORA], ids=["full", "lora"])
def policy(request, make_policy, family):
    return make_policy(family, lora=request.param)


class TestReference:
    def test_is_the_policy_before_training_and_stays_so(self, policy, rolled, family):
        rollouts = rolled[family]
        before = score(policy, rollouts, "reference")
        assert torch.equal(before, score(policy, rollouts))
        for _ in range(3):
            step(policy, rollouts)
        assert torch.equal(score(policy, rollouts, "reference"), before)
        assert (score(policy, rollouts) - before).abs().max() > 1e-3

    def test_asking_for_it_changes_neither_gradients_nor_what_trains(self, policy, rolled, family):
        rollouts = rolled[family]
        trains = {n for n, p in policy.module.named_parameters() if p.requires_grad}
        log_probs = policy.evaluate(rollouts).log_probs
        score(policy, rollouts, "reference")
        log_probs.sum().backward()
        assert {n for n, p in policy.module.named_parameters() if p.requires_grad} == trains
        assert {n for n, p in policy.module.named_parameters() if p.grad is not None} == trains
        policy.module.zero_grad(set_to_none=True)

    def test_of_full_fine_tuning_is_made_only_when_asked(self, make_policy, rolled):
        policy = make_policy()
        score(policy, rolled["qwen3_vl"])
        assert "_frozen_reference" not in vars(policy)
        score(policy, rolled["qwen3_vl"], "reference")
        assert "_frozen_reference" in vars(policy)

    def test_survives_a_resume(self, make_policy, rolled):
        trained, rollouts = make_policy(), rolled["qwen3_vl"]
        before = score(trained, rollouts)
        step(trained, rollouts)
        resumed = make_policy()
        resumed.load_trainable_state(trained.trainable_state())
        assert torch.equal(score(resumed, rollouts), score(trained, rollouts))
        assert torch.equal(score(resumed, rollouts, "reference"), before)

    def test_moving_averages_are_refused(self, policies, rolled):
        with pytest.raises(PolicyError, match="keeps no moving average"):
            score(policies["qwen3_vl"], rolled["qwen3_vl"], "ema")


class TestWhatTrains:
    def vision(self, policy):
        return [p for n, p in policy.module.named_parameters() if ".visual." in n and p.requires_grad]

    @pytest.mark.parametrize(
        ("options", "trains"),
        [
            ({}, True),
            ({"train_vision": False}, False),
            ({"lora": LORA}, False),
            ({"lora": LORA, "train_vision": True}, True),
        ],
    )
    def test_the_vision_tower_trains_as_configured(self, make_policy, options, trains):
        policy = make_policy(**options)
        assert bool(self.vision(policy)) == trains == policy.inner.vision_trains

    def test_a_frozen_tower_needs_no_idle_pass(self, make_policy, rolled):
        policy = make_policy(train_vision=False)
        policy.evaluate(rolled["qwen3_vl"].index([8])).log_probs.sum().backward()
        assert all(p.grad is None for p in policy.inner.core.model.visual.parameters())

    def test_every_adapter_gets_a_gradient_without_images_too(self, make_policy, rolled, family):
        policy = make_policy(family, lora=LORA, train_vision=True)
        policy.evaluate(rolled[family].index([8])).log_probs.sum().backward()
        assert all(p.grad is not None for p in policy.module.parameters() if p.requires_grad)

    def test_lora_variants_reach_peft(self, make_policy):
        policy = make_policy(lora=LORA | {"dora": True, "rslora": True, "targets": ["q_proj", "v_proj"]})
        settings = policy.inner.model.peft_config["default"]
        assert settings.use_dora and settings.use_rslora and set(settings.target_modules) == {"q_proj", "v_proj"}

    def test_adapters_are_drawn_from_the_seed(self, tiny):
        config = LanguagePolicyConfig(model="tiny", lora=LORA)
        torch.manual_seed(1)
        one = VisionPolicy(*tiny(), config, seed=5).trainable_state()
        two = VisionPolicy(*tiny(), config, seed=5).trainable_state()
        other = VisionPolicy(*tiny(), config, seed=6).trainable_state()
        assert all(torch.equal(one[n], two[n]) for n in one)
        assert not all(torch.equal(one[n], other[n]) for n in one)


class TestState:
    def test_round_trip_is_exact(self, policy, make_policy, rolled, family):
        step(policy, rolled[family])
        again = make_policy(family, lora=policy.config.lora)
        again.load_trainable_state(policy.trainable_state())
        assert torch.equal(score(again, rolled[family]), score(policy, rolled[family]))

    def test_lora_state_holds_adapters_only(self, make_policy):
        state = make_policy(lora=LORA).trainable_state()
        assert state and all("lora_" in name for name in state)

    def test_a_state_of_another_model_is_refused(self, make_policy):
        state = make_policy(lora=LORA).trainable_state()
        with pytest.raises(PolicyError, match=r"are not in it .*of its tensors are unknown"):
            make_policy().load_trainable_state(state)
        wider = make_policy(lora=LORA | {"rank": 8})
        with pytest.raises(PolicyError, match=r"lora_A.*shape \(4, 128\), expected \(8, 128\)"):
            wider.load_trainable_state(state)


LOAD = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mmrl":
            raise ModuleNotFoundError("mmrl is not here")

# An environment's start-up file may have imported mmrl's torchvision repair: forget it.
sys.meta_path[:] = [Blocked(), *(f for f in sys.meta_path if not type(f).__module__.startswith("mmrl"))]
for name in [n for n in sys.modules if n.partition(".")[0] == "mmrl"]:
    del sys.modules[name]
import torch
if torch.version.cuda is None:  # a CUDA build of torchvision beside a CPU torch lacks two operators
    keep = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        keep.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

base, adapter, merged, inputs = sys.argv[1:]
given = load_file(inputs)
results = {}
for name in ("adapter", "merged"):
    model = AutoModelForImageTextToText.from_pretrained(base if name == "adapter" else merged)
    if name == "adapter":
        model = PeftModel.from_pretrained(model, adapter)
    AutoProcessor.from_pretrained(adapter if name == "adapter" else merged)
    with torch.no_grad():
        logits = model.eval()(**given).logits[0, -1]
    results[name] = logits[:50].tolist()
assert "mmrl" not in sys.modules
print(json.dumps(results))
"""


class TestExports:
    @pytest.fixture(scope="class")
    def exported(self, tiny, rolled, tmp_path_factory):
        """A trained LoRA policy whose base lies on disk; its adapter and its merged weights beside it."""
        folder = tmp_path_factory.mktemp("exports")
        model, processor = tiny("qwen3_vl")
        model.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
        config = LanguagePolicyConfig(model=str(folder / "base"), lora=LORA, max_new_tokens=10)
        policy = VisionPolicy.from_config(config, seed=1)
        for _ in range(3):
            step(policy, rolled["qwen3_vl"], rate=0.5)
        policy.save_pretrained(folder / "adapter")
        policy.save_pretrained(folder / "merged", merged=True)
        return policy, folder

    def test_load_with_plain_libraries_where_mmrl_cannot_be_imported(self, exported, rolled, tmp_path):
        policy, folder = exported
        entry = rolled["qwen3_vl"].encoded[0]
        inputs = {"input_ids": entry.ids[None], "mm_token_type_ids": entry.token_types[None], **entry.media}
        save_file(inputs, tmp_path / "inputs.safetensors")
        with policy.acting():
            wanted = policy.inner.core(**inputs).logits[0, -1, :50]
        folders = [str(folder / name) for name in ("base", "adapter", "merged")]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(LOAD), *folders, str(tmp_path / "inputs.safetensors")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        loaded = json.loads(done.stdout.splitlines()[-1])
        for name in ("adapter", "merged"):
            assert torch.allclose(torch.tensor(loaded[name]), wanted, atol=1e-4), name

    def test_merging_leaves_the_policy_as_it_was(self, exported, rolled, tmp_path):
        policy, _ = exported
        before = score(policy, rolled["qwen3_vl"])
        policy.save_pretrained(tmp_path / "again", merged=True)
        assert torch.equal(score(policy, rolled["qwen3_vl"]), before)

    def test_go_on_from_an_adapter_and_measure_against_it(self, exported, rolled):
        policy, folder = exported
        config = policy.config.model_copy(update={"adapter": str(folder / "adapter"), "lora": None})
        resumed, rollouts = VisionPolicy.from_config(config), rolled["qwen3_vl"]
        start = score(resumed, rollouts)
        assert torch.allclose(start, score(policy, rollouts), atol=1e-5)
        assert torch.equal(score(resumed, rollouts, "reference"), start)
        state = resumed.trainable_state()
        step(resumed, rollouts)
        assert torch.equal(score(resumed, rollouts, "reference"), start)
        assert (score(resumed, rollouts) - start).abs().max() > 1e-4
        assert resumed.trainable_state().keys() == state.keys()

    def test_the_reference_of_a_loaded_model_is_its_checkpoint(self, exported, rolled):
        _, folder = exported
        config = LanguagePolicyConfig(model=str(folder / "base"), max_new_tokens=10)
        policy, rollouts = VisionPolicy.from_config(config), rolled["qwen3_vl"]
        before = score(policy, rollouts)
        step(policy, rollouts)
        assert torch.equal(score(policy, rollouts, "reference"), before)

    def test_only_safe_files_are_written(self, exported):
        _, folder = exported
        suffixes = {p.suffix for name in ("adapter", "merged") for p in (folder / name).iterdir()}
        assert suffixes <= {".safetensors", ".json", ".jinja", ".md"}
        assert not list(folder.glob(".*"))

    def test_a_missing_model_or_adapter_is_one_clear_line(self, exported, tmp_path):
        _, folder = exported
        with pytest.raises(ConfigError, match="model: cannot load"):
            VisionPolicy.from_config(LanguagePolicyConfig(model=str(tmp_path)))
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(ConfigError, match="'llama' is not supported"):
            VisionPolicy.from_config(LanguagePolicyConfig(model=str(tmp_path)))
        with pytest.raises(ConfigError, match=r"no adapter_config.json"):
            VisionPolicy.from_config(LanguagePolicyConfig(model=str(folder / "base"), adapter=str(tmp_path)))

    @pytest.mark.parametrize("change", [{"target_modules": ["to_q"]}, {"r": 3}], ids=["other modules", "other sizes"])
    def test_an_adapter_of_another_model_is_one_clear_line(self, exported, tmp_path, change):
        _, folder = exported
        adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
        settings = json.loads((adapter / "adapter_config.json").read_text()) | change
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(ConfigError, match="does not fit this model"):
            VisionPolicy.from_config(LanguagePolicyConfig(model=str(folder / "base"), adapter=str(adapter)))


def test_a_lora_policy_samples_what_it_scores(make_policy, rolled, family):
    policy = make_policy(family, lora=LORA)
    step(policy, rolled[family], rate=0.5)
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    assert (score(policy, rollouts) - rollouts.old_log_probs).abs().max() < 1e-5


def test_rollouts_reloaded_from_disk_are_encoded_again(policies, rolled, family, tmp_path):
    rolled[family].index([8, 9]).save(tmp_path / "kept")
    loaded = type(rolled[family]).load(tmp_path / "kept")
    assert loaded.encoded == [None]
    scored = score(policies[family], loaded)
    assert (scored - loaded.old_log_probs).abs().max() < 1e-5


def test_rollouts_reloaded_without_their_images_say_so(policies, rolled, tmp_path):
    rolled["qwen3_vl"].index([0]).save(tmp_path / "kept")
    loaded = type(rolled["qwen3_vl"]).load(tmp_path / "kept")
    with pytest.raises(PolicyError, match=r"prompt 'one' has 0 image\(s\) but its messages have 1"):
        score(policies["qwen3_vl"], replace(loaded))
