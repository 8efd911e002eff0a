"""What accelerate may be set to: nothing that training sees and the rollout does not."""

from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from mmrl.errors import ConfigError
from mmrl.pipelines.bases.models import tiny_vlm
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.training.distributed import make_accelerator
from tests.policies.generation.tiny import flow_policy

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision=bf16, which rollouts would not see"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed takes an optimizer step"),
    ],
)
def test_settings_that_would_train_something_else_are_refused(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        make_accelerator()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configurations_leave_precision_to_the_policy(path):
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"
    assert len(SHIPPED) == 3


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_fsdp_shards_block_by_block(lora):
    language = VisionPolicy(*tiny_vlm("qwen3_vl"), LanguagePolicyConfig(model="tiny", lora=lora))
    layers = list(language.inner.core.model.language_model.layers)
    flow = flow_policy(lora=lora)
    blocks = [m for m in flow.module.modules() if type(m).__name__ == "JointTransformerBlock"]
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    for policy, expected in ((language, layers), (flow, blocks)):
        wraps = fsdp2_prepare_auto_wrap_policy(plugin, policy.module)
        assert len(expected) > 1
        assert [m for m in policy.module.modules() if wraps(m)] == expected
