"""Each method without log-probs raises the held-out score of the shipped tiny generator: `pytest -m learns`."""

import pytest

from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import train
from mmrl.pipelines.sample import sample_run

pytestmark = [pytest.mark.learns, pytest.mark.timeout(3600)]

DRAWS = {"awm": ["policy.draws.first=0", "policy.draws.last=9"]}
"""Of recipes whose draws are made for more steps than the demo samples with."""


@pytest.mark.parametrize("recipe", ["diffusion_nft", "awm", "dgpo_direct", "crd", "gdro"])
def test_the_held_out_score_rises(recipe, tmp_path):
    """The demo's world, sizes and learning rate; four draws of each output, and no guided reference, since the tiny
    model was not trained for guidance."""
    changes = [
        f"recipe={recipe}", f"run_dir={tmp_path}", "policy.draws.count=4", "policy.reference_guidance=1",
        "training.steps=40", "training.seed=0", *DRAWS.get(recipe, []),
    ]  # fmt: skip
    result = train(read_config("demo", changes, "flow"))
    print(recipe, result.before, result.after)
    assert result.after["reward"] > result.before["reward"] + 0.05


def test_the_held_out_score_rises_from_stored_outputs_alone(tmp_path):
    """256 prompts with 12 pictures each of the untrained model and their rewards: nothing is sampled in training."""
    sample_run("flow", tmp_path / "made", 256, 12, ["demo", "recipe=gdro", "data.eval=null"])
    changes = [
        "recipe=gdro_offline", f"run_dir={tmp_path / 'run'}", f'rollout.stored_outputs.folders=["{tmp_path / "made"}"]',
        "training.group_size=6", "training.prompts_per_step=16", "training.steps=20", "training.seed=0",
        "watch.every=0",
    ]  # fmt: skip
    result = train(read_config("demo", changes, "flow"))
    print(result.before, result.after)
    assert result.after["reward"] > result.before["reward"] + 0.1
