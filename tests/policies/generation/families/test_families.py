"""Generator families against their own pipelines: a handful here, all of them by `make generators`."""

from __future__ import annotations

import pytest

from tests.policies.generation.families.cases import BY_NAME
from tests.policies.generation.families.measure import measure

HANDFUL = (
    "FLUX.1-dev, true guidance", "Qwen-Image", "Z-Image", "SANA", "CogView4", "Wan 2.2 A14B text",
    "Wan 2.2 TI2V-5B image", "Stable Audio 3",
)  # fmt: skip


@pytest.mark.parametrize("name", HANDFUL)
def test_a_variant_is_its_pipeline_and_trains(name):
    assert not measure(BY_NAME[name]).faults()
