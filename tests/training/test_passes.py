"""From declared needs to passes: what is shared, what belongs to the update, what is refused."""

import pytest

from mmrl import stages
from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.policies.language.vision import VisionPolicy
from mmrl.stages import Need, View, stage
from mmrl.training.passes import plan_passes

BLACK = View.of("patch_black", share=0.5, size=14)


@pytest.fixture(autouse=True)
def seen_through(monkeypatch):
    """A regularizer that reads two numbers under a view, registered for one test."""
    stages.load_all()
    monkeypatch.setattr(stages, "_REGISTRY", dict(stages._REGISTRY))

    def needs(*, weights, **_):
        return {probe: Need(probe, under=BLACK, weights=weights) for probe in ("log_probs", "entropy")}

    @stage("regularizer", paper="-", confidence="ours", formula="-log p under a view", needs=needs)
    def seen_through(evaluation, batch, *, weights: str = "old"):
        return -batch["log_probs"]


def plan(**parameters):
    regularizers = [{"name": "seen_through", "coefficient": 1.0, **parameters}, {"name": "kl", "coefficient": 0.1}]
    chosen = {"advantage": "grpo", "aggregation": "token_mean", "regularizers": regularizers}
    return plan_passes(Objective.of(chosen), VisionPolicy)


def test_needs_of_one_view_and_weights_share_a_pass():
    assert [str(p) for p in plan().prepare] == [
        "log_probs, entropy with old weights under patch_black(share=0.5,size=14)",
        "log_probs with reference weights",
    ]
    assert plan().update == []


def test_a_view_under_current_weights_is_refused_when_the_configuration_is_read():
    message = r"seen_through.* needs 'log_probs' with current weights under patch_black\(share=0.5,size=14\)"
    with pytest.raises(ConfigError, match=message):
        plan(weights="current")
