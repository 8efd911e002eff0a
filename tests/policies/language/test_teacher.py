"""A teacher beside the policy: another checkpoint or adapter of the same vocabulary."""

import re
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.pipelines.config import read_config, shipped_asset
from mmrl.policies.language.config import LanguagePolicyConfig, load_model
from mmrl.policies.language.teacher import TeacherConfig, loaded
from mmrl.policies.language.vision import VisionPolicy
from mmrl.policies.quantized import is_packed
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Request
from mmrl.stages import Need
from mmrl.training.config import TrainingConfig
from mmrl.training.passes import plan_passes
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels

LOG_PROBS, VALUE = Need("log_probs", weights="teacher"), Need("teacher_value")


def policy_of(teacher, **changes) -> VisionPolicy:
    config = LanguagePolicyConfig(
        model=str(shipped_asset("tiny_vlm")), max_new_tokens=5, teacher=TeacherConfig(**teacher), **changes
    )
    return VisionPolicy.from_config(config)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A checkpoint of the student's vocabulary with other weights, and an adapter that makes them of the student's."""
    folder = tmp_path_factory.mktemp("teachers")
    policy = policy_of({})
    for parameter in policy.module.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    policy.save_pretrained(folder / "model")
    adapted = policy_of({}, lora={"rank": 2})
    for name, parameter in adapted.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder / "adapter")
    return folder


def answers(policy):
    with torch.no_grad():
        return policy.rollout([Request(p, 3, group=i) for i, p in enumerate(make_prompts(2))], Key(0))


def test_the_student_itself_teaches_nothing():
    policy = policy_of({"model": str(shipped_asset("tiny_vlm"))})
    rows = answers(policy)
    found = policy.evaluate(rows, [LOG_PROBS], weights="teacher").columns[LOG_PROBS.key]
    assert torch.allclose(found, rows.old_log_probs, atol=1e-5)
    assert policy.evaluate(rows, [VALUE], weights="old").columns[VALUE.key].abs().max() < 1e-5


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_another_checkpoint_reads_the_same_tokens(other, lora):
    """Its log-probs are those it has by itself, also where the student's frozen tower keeps features."""
    policy = policy_of({"model": str(other / "model")}, lora=lora)
    rows = answers(policy)
    found = policy.evaluate(rows, [LOG_PROBS], weights="teacher").columns[LOG_PROBS.key]
    own = VisionPolicy.from_config(LanguagePolicyConfig(model=str(other / "model"), max_new_tokens=5))
    for index in range(len(rows.encoded)):
        rows.encoded[index] = None
    assert torch.allclose(found, own.evaluate(rows, (), weights="old").log_probs, atol=1e-4)
    assert (found - rows.old_log_probs).abs().max() > 0.01
    value = policy.evaluate(rows, [VALUE], weights="old").columns[VALUE.key][rows.mask]
    assert (value < 0).all() and value.min() > -5


def test_an_adapter_on_the_student_s_own_model(other):
    policy = policy_of({"adapter": str(other / "adapter")})
    rows = answers(policy)
    found = policy.evaluate(rows, [LOG_PROBS], weights="teacher").columns[LOG_PROBS.key]
    adapted = policy_of({}, adapter=str(other / "adapter"))
    assert torch.allclose(found, adapted.evaluate(rows, (), weights="old").log_probs, atol=1e-4)
    assert (found - rows.old_log_probs).abs().max() > 0.001


@pytest.mark.parametrize("recipe", ["opd", "vopd"])
def test_the_student_comes_closer(other, recipe, tmp_path):
    """The mean reverse KL to the teacher falls; the reward, which nobody reads, says nothing."""
    policy = policy_of({"model": str(other / "model")})
    objective = Objective.of(load_recipe(recipe).objective)

    def apart():
        return -policy.evaluate(answers(policy), [VALUE], weights="old").columns[VALUE.key].mean().item()

    before = apart()
    config = TrainingConfig(steps=6, prompts_per_step=2, group_size=8, learning_rate=3e-4)
    Trainer(policy, objective, make_prompts(2), score_vowels, config, tmp_path).train()
    assert apart() < 0.7 * before


def test_nobody_named_is_refused_before_anything_is_loaded():
    objective = Objective.of(load_recipe("opd").objective)
    with pytest.raises(ConfigError, match=r"policy\.teacher\.model=NAME"):
        plan_passes(objective, VisionPolicy, None, LanguagePolicyConfig(model="m"))
    plan_passes(objective, VisionPolicy, None, LanguagePolicyConfig(model="m", teacher=TeacherConfig(model="t")))
    with pytest.raises(ConfigError, match="nobody is named"):
        make_policy().evaluate(answers(make_policy()), [LOG_PROBS], weights="teacher")


def test_another_vocabulary_is_refused():
    policy = policy_of({"model": str(shipped_asset("tiny_zoom"))})
    with pytest.raises(ConfigError, match=r"another vocabulary than the student: \d+ tokens differ"):
        policy.evaluate(answers(policy), [LOG_PROBS], weights="teacher")


def test_one_is_never_packed_as_the_student_is(other):
    policy = policy_of({"model": str(other / "model")})
    config = policy.config.model_copy(update={"quantize": "nf4"})
    model = loaded(config, load_model, policy.inner.core, policy.processor, policy.device)
    assert not any(is_packed(module) for module in model.modules())


def test_one_that_lacks_weights_is_refused_by_its_own_name(other, tmp_path):
    copytree(other / "model", tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights[lost := next(name for name in weights if "mlp" in name)]
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    policy = policy_of({"model": str(tmp_path / "half")})
    with pytest.raises(ConfigError, match=rf"^policy\.teacher\.model: .*half' lacks 1 .*{re.escape(lost)}.* random"):
        policy.evaluate(answers(policy), [LOG_PROBS], weights="teacher")


def test_a_shipped_checkpoint_teaches_by_name():
    config = read_config({"policy": {"model": "asset:tiny_vlm", "teacher": {"model": "asset:tiny_vlm"}}}, (), "vlm")
    assert config.policy_settings().teacher.model == str(shipped_asset("tiny_vlm"))
