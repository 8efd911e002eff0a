"""What a plan counts of a language model's memory: a number for each thing that a run holds."""

import re

import pytest

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
