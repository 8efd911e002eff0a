"""Pipelines that cannot be trained are refused from their index, by the policy and by a plan, before anything loads."""

import json

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.plan import plan_run
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.families import refuse_other_kinds
from mmrl.policies.generation.pipeline import load_pipeline


@pytest.fixture
def unet(tmp_path):
    """A pipeline of another kind, without a single weight: what loads it would fail for their lack."""
    listed = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.40.0",
        "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"],
    }  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(listed))
    return tmp_path


def test_training_and_planning_refuse_it_alike(unet):
    with pytest.raises(ConfigError, match="DiffusionPipeline has no transformer, it has scheduler, unet") as train:
        load_pipeline(FlowPolicyConfig(model=str(unet)))
    config = read_config("flow_grpo_fast", [f"policy.model={unet}"], "flow")
    with pytest.raises(ConfigError) as plan:
        plan_run(config)
    assert str(plan.value) == str(train.value)


def test_a_second_expert_or_a_transformer_of_ones_own_will_do():
    scheduler = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    refuse_other_kinds({**scheduler, "transformer_2": ["diffusers", "WanTransformer3DModel"]})
    refuse_other_kinds({**scheduler, "transformer": [None, None]}, given=True)
    with pytest.raises(ConfigError, match="no transformer"):
        refuse_other_kinds({**scheduler, "transformer": [None, None]})
