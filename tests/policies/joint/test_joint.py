"""Words and pictures in turns: one row, two likelihoods, one loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrl.batch import KINDS
from mmrl.errors import ConfigError, DataError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.joint.policy import JointPolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request, Rollouts, Scores, Start
from mmrl.stages import NEEDS, Need
from mmrl.told import Told
from mmrl.training.config import TrainingConfig
from mmrl.training.made import attach_columns
from mmrl.training.trainer import Trainer
from tests.policies.generation.tiny import flow_policy
from tests.policies.masked.test_policy import policy as writer
from tests.policies.masked.test_policy import requests

PART = {"ratio": "token", "trust_region": {"name": "clip", "low": 0.2, "high": 0.2}, "aggregation": "sequence_mean"}
OBJECTIVE = {"kinds": {"tokens": PART, "transition": {**PART, "coefficient": 0.5}}}
TURNS = [{"by": "writer"}, {"by": "painter", "ask": "{prompt} {text}"}]
WORDS, STEPS = KINDS.index("tokens"), KINDS.index("transition")


def joint(turns=TURNS, **options) -> JointPolicy:
    painter = flow_policy(lora={"rank": 4, "alpha": 8}, steps=4, **options)
    return JointPolicy(writer(surrogate="one_step", lora={"rank": 4}), painter, turns=turns)


def score(outputs, prompts) -> Scores:
    assert all(isinstance(each, Told) for each in outputs)
    light = torch.tensor([float(np.asarray(each.picture).mean()) / 255 for each in outputs])
    words = torch.tensor([float(sum(c in "aei" for c in each.text)) for each in outputs])
    return Scores({"light": light, "words": words}, light + words, (words > 0).float())


def test_training_finds_what_the_rollout_found_of_both_kinds():
    actor = joint()
    rows = actor.rollout(requests("abc", "defgh"), Key(3))
    kind = rows.columns["kind"]
    assert (kind[:, :6] == WORDS).all() and (kind[:, 6:] == STEPS).all()
    assert torch.equal(rows.columns["segment"], torch.where(rows.mask, (kind == STEPS).long(), -1))
    old, new, mask = actor.replayed(rows)
    assert mask[:, :6].any() and mask[:, 6:9].all() and not mask[:, 9].any(), "the last step is the ODE's"
    assert (new - old).abs()[mask].max() < 1e-5
    few = torch.tensor([4, 1])
    assert torch.allclose(actor.evaluate(rows.index(few)).log_probs, old[few], atol=1e-5), "whatever the micro-batch"
    parts = [actor.rollout(requests(text), Key(3)) for text in ("abc", "defgh")]
    apart = Rollouts.concatenate(parts)
    assert torch.allclose(apart.old_log_probs, rows.old_log_probs, atol=1e-5), "whoever shares the batch"
    assert torch.allclose(actor.evaluate(apart).log_probs, rows.old_log_probs, atol=1e-5)


def test_each_part_is_scored_as_its_own_policy_scores_it():
    """The log-prob of a row is the sum of the two policies' own."""
    actor = joint()
    rows = actor.rollout(requests("abc"), Key(3))
    words = actor.writer.rollout(requests("abc"), Key(3))
    assert torch.equal(rows.old_log_probs[:, :6], words.old_log_probs)
    asked = [Prompt(f"pabc/{m}", [{"role": "user", "content": f"abc {t}"}]) for m, t in enumerate(words.outputs)]
    steps = actor.painter.rollout([Request(p, 1, group=i) for i, p in enumerate(asked)], Key(3))
    assert torch.equal(rows.old_log_probs[:, 6:], steps.old_log_probs)
    assert [told.text for told in rows.outputs] == words.outputs
    assert all(np.array_equal(told.picture, other) for told, other in zip(rows.outputs, steps.outputs, strict=True))


def test_needs_are_met_where_they_are_offered():
    """The reference of both; the steps' own numbers are 0 on words."""
    actor = joint()
    rows = actor.rollout(requests("abc"), Key(3))
    with torch.no_grad():
        for name, weight in actor.module.named_parameters():
            if "lora_B" in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    need = NEEDS["ref_log_probs"]
    reference = actor.evaluate(rows, [need], weights="reference")[need.key]
    assert torch.allclose(reference, rows.old_log_probs, atol=1e-5), "adapters begin as nothing"
    assert (actor.evaluate(rows).log_probs - reference).abs()[rows.mask].min() > 0
    moved = Need("reference_kl", weights="current")
    kl = actor.evaluate(rows, [moved])[moved.key]
    assert (kl[:, :6] == 0).all() and (kl[:, 6:9] > 0).all()


def test_the_picture_is_of_the_words():
    rows = joint().rollout(requests("abc"), Key(3))
    alone = joint([{"by": "writer"}, {"by": "painter", "ask": "{prompt}"}]).rollout(requests("abc"), Key(3))
    assert [each.text for each in alone.outputs] == [each.text for each in rows.outputs]
    assert not torch.equal(alone.replay["1|latents"], rows.replay["1|latents"])


def run(folder, actor, objective=OBJECTIVE, resume=None, **training):
    prompts = [request.prompt for request in requests("abc", "def", "ghi")]
    sizes = {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3, "save_every": 1}
    before = {n: v.clone() for n, v in actor.module.named_parameters()}
    trainer = Trainer(actor, Objective.of(objective), prompts, score, TrainingConfig(**sizes | training), folder)
    trainer.train(resume)
    moved = {name.partition(".")[0] for name, v in actor.module.named_parameters() if not torch.equal(before[name], v)}
    return actor.trainable_state(), moved, trainer


def test_one_loss_moves_both_and_a_resume_is_exact(tmp_path):
    whole, moved, _ = run(tmp_path / "whole", joint())
    assert moved == {"writer", "painter"}
    again, _, _ = run(tmp_path / "again", joint(), resume=tmp_path / "whole" / "checkpoints" / "step-000001")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_one_side_may_stay_as_it_is_and_each_has_its_rate(tmp_path):
    actor = joint()
    config = actor.config.model_copy(update={"train": ["painter"]})
    state, moved, _ = run(tmp_path / "one", JointPolicy(actor.writer, actor.painter, config), steps=1)
    assert moved == {"painter"} and all(name.startswith("painter.") for name in state)
    actor = joint()
    actor.config = actor.config.model_copy(update={"learning_rates": {"writer": 0.0}})
    _, moved, trainer = run(tmp_path / "rates", actor, steps=1, warmup_steps=2)
    assert moved == {"painter"}, "a rate of 0 moves nothing"
    rates = {group["part"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"writer": 0.0, "": 5e-4}, "both under the run's warm-up"


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match="likelihood=transition"):
        JointPolicy(writer(), flow_policy(likelihood="matching", draws={"count": 2}))
    actor, (request,) = joint(), requests("abc")
    row = actor.rollout([request], Key(3)).index([0])
    with pytest.raises(PolicyError, match="joint policies begin with words of their own and take no prefix"):
        actor.rollout([Request(request.prompt, 1, group=0, start=Start(row, 2))], Key(3))
    with pytest.raises(DataError, match="'pabc' has images, which a masked writer does not read"):
        actor.rollout([Request(Prompt("pabc", request.prompt.messages, images=["x.png"]), 1, group=0)], Key(3))
    with pytest.raises(DataError, match=r"turns.1.ask reads \{shape\}, which is no column of it; there are prompt, te"):
        joint([{"by": "writer"}, {"by": "painter", "ask": "{shape}"}]).rollout(requests("abc"), Key(3))


def test_what_a_stretch_earned_stands_on_its_last_action():
    actor = joint()
    rows = actor.rollout(requests("abc", count=2), Key(3))
    rows.reward = torch.zeros(2)
    scores = Scores({}, torch.zeros(2), torch.zeros(2), columns={"action_reward": [[[0, 1, 0.5], [1, 2, 0.25]]] * 2})
    assert not attach_columns(rows, scores, actor)
    earned = rows.columns["action_reward"]
    for row in range(2):
        last = int(rows.mask[row, :6].nonzero().max())
        assert earned[row, last] == 0.5 and earned[row, 8] == 0.25 and earned[row].count_nonzero() == 2
