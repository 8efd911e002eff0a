"""The generators' sized configurations: what docs/clusters.md says of them is what a plan counts."""

import re
from pathlib import Path

import pytest

from mmrl.pipelines.config import read_config
from mmrl.pipelines.plan import plan_run
from tests.pipelines import published

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
MODELS = {
    "sd3_5_medium_one_80gb": published.sd3_5_medium,
    "flux_1_one_80gb": published.flux_1_dev,
    "wan_1_3b_one_80gb": published.wan_2_1_1_3b,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_what_the_plan_counts_and_the_card_holds_it(tmp_path, name):
    folder = MODELS[name](tmp_path / name)
    told = plan_run(read_config(name, [f"policy.model={folder}"], "flow")).split("\nmemory\n")[1]
    block = PAGE.split(f"`mmrl train flow {name} ")[1].split("```\n")[1]
    assert block.count("\n") == 6
    assert block in told + "\n"
    peak = float(re.search(r"peak ([\d.]+) GiB on each process", told)[1])
    assert peak < 0.7 * 80
