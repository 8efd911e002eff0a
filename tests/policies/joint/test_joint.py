"""Words and then a picture of them: one row, two likelihoods, one loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrl.batch import KINDS
from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.policies.joint.policy import JointPolicy, Told
from mmrl.randomness import Key
from mmrl.record import Rollouts, Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.policies.generation.tiny import flow_policy
from tests.policies.masked.test_policy import policy as writer
from tests.policies.masked.test_policy import requests

PART = {"ratio": "token", "trust_region": {"name": "clip", "low": 0.2, "high": 0.2}, "aggregation": "sequence_mean"}
OBJECTIVE = {"kinds": {"masked": PART, "transition": {**PART, "coefficient": 0.5}}}


def joint(**options) -> JointPolicy:
    return JointPolicy(writer(surrogate="one_step"), flow_policy(lora={"rank": 4, "alpha": 8}, steps=4, **options))


def score(outputs, prompts) -> Scores:
    assert all(isinstance(each, Told) for each in outputs)
    light = torch.tensor([float(np.asarray(each.picture).mean()) / 255 for each in outputs])
    words = torch.tensor([float(sum(c in "aei" for c in each.text)) for each in outputs])
    return Scores({"light": light, "words": words}, light + words, (words > 0).float())


def test_training_finds_what_the_rollout_found_of_both_kinds():
    actor = joint()
    rows = actor.rollout(requests("abc", "defgh"), Key(3))
    kind = rows.columns["kind"]
    assert (kind[:, :4] == KINDS.index("transition")).all() and (kind[:, 4:] == KINDS.index("masked")).all()
    old, new, mask = actor.replayed(rows)
    assert mask[:, :3].all() and not mask[:, 3].any() and mask[:, 4:].any(), "the last step is the ODE's"
    assert (new - old).abs()[mask].max() < 1e-5
    few = torch.tensor([4, 1])
    assert torch.allclose(actor.evaluate(rows.index(few)).log_probs, old[few], atol=1e-5), "whatever the micro-batch"
    parts = [actor.rollout(requests(text), Key(3)) for text in ("abc", "defgh")]
    apart = Rollouts.concatenate(parts)
    assert torch.allclose(apart.old_log_probs, rows.old_log_probs, atol=1e-5), "whoever shares the batch"
    assert torch.allclose(actor.evaluate(apart).log_probs, rows.old_log_probs, atol=1e-5)


def test_the_picture_is_of_the_words():
    rows = joint().rollout(requests("abc"), Key(3))
    other = JointPolicy(writer(surrogate="one_step"), joint().painter, ask=lambda prompt, words: prompt)
    alone = other.rollout(requests("abc"), Key(3))
    assert [each.text for each in alone.outputs] == [each.text for each in rows.outputs]
    assert not torch.equal(alone.replay["steps|latents"], rows.replay["steps|latents"])


def test_one_loss_is_that_of_the_parts_and_moves_both(tmp_path):
    """The gradient of each model is that of its kind alone; a run moves both, and a resume is exact."""
    actor, prompts = joint(), [request.prompt for request in requests("abc", "def", "ghi")]

    def run(folder, actor, objective=OBJECTIVE, resume=None):
        config = TrainingConfig(steps=2, prompts_per_step=2, group_size=4, learning_rate=1e-3, save_every=1)
        before = {n: v.clone() for n, v in actor.trainable_state().items()}
        Trainer(actor, Objective.of(objective), prompts, score, config, folder).train(resume)
        after = actor.trainable_state()
        return after, {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    whole, moved = run(tmp_path / "whole", actor)
    assert moved == {"writer", "painter"}
    again, _ = run(tmp_path / "again", joint(), resume=tmp_path / "whole" / "checkpoints" / "step-000001")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_painter_without_log_probs_is_refused():
    with pytest.raises(ConfigError, match="likelihood=transition"):
        JointPolicy(writer(), flow_policy(likelihood="matching", draws={"count": 2}))
