"""Soft tokens: what was mixed when a row was written is mixed again when it is scored, and its density is the same."""

import math

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.names import engine_class
from mmrl.policies.language.likelihoods.soft_tokens import WEIGHTS, mixed
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels

SOFT = {"likelihood": "soft_tokens", "shared_prompt": "off", "reuse_prefill": "off"}


def soft_policy(**engine):
    return make_policy(engine={"name": "soft", "top": 4, **engine}, **SOFT)


def rows_of(policy, *, greedy=False, count=3):
    return policy.rollout([Request(p, count, group=g) for g, p in enumerate(make_prompts(2))], Key(3), greedy=greedy)


def test_a_mixture_of_one_token_is_that_token():
    table = torch.nn.Embedding(7, 3)
    ids, weights = torch.tensor([[[4, 2]]]), torch.tensor([[[1.0, 0.0]]])
    with mixed(table, ids, weights, torch.tensor([[True]])):
        assert torch.equal(table(torch.tensor([[6]]))[0, 0], table.weight[4])
        assert torch.equal(table(torch.tensor([6])), table.weight[[6]]), "another shape is embedded as ever"
    with mixed(table, ids, torch.tensor([[[0.25, 0.75]]]), torch.tensor([[True]])):
        torch.testing.assert_close(table(torch.tensor([[6]]))[0, 0], 0.25 * table.weight[4] + 0.75 * table.weight[2])
    assert torch.equal(table(torch.tensor([[6]]))[0, 0], table.weight[6])


@pytest.mark.parametrize("engine", [{"temperature": 1.0}, {"temperature": 0.5, "steps": 3}], ids=["soft", "then hard"])
def test_scored_again_a_row_has_the_density_it_was_drawn_with(engine):
    policy = soft_policy(**engine)
    rows = rows_of(policy)
    soft = rows.replay["soft"]
    assert soft.sum(1).tolist() == [min(n, engine.get("steps", n)) for n in rows.length.tolist()]
    with torch.no_grad():
        found = policy.evaluate(rows, ()).log_probs
        torch.testing.assert_close(found, rows.old_log_probs, atol=2e-4, rtol=0)
        rows.replay[WEIGHTS] = rows.replay[WEIGHTS].flip(-1)  # another mixture: what follows it is told apart
        assert (policy.evaluate(rows, ()).log_probs - rows.old_log_probs).abs().max() > 1e-3
    assert rows.index([4, 0]).replay["gumbels"].shape[2] == 4


def test_draws_are_the_row_s_own_and_greedy_rows_take_none():
    policy = soft_policy(temperature=1.0)
    many, few = rows_of(policy), rows_of(policy, count=2)
    width = min(many.actions.shape[1], few.actions.shape[1])
    assert torch.equal(many.index([0, 1, 3, 4]).replay["gumbels"][:, :width], few.replay["gumbels"][:, :width])
    greedy = rows_of(policy, greedy=True)
    assert torch.equal(greedy.actions[0], greedy.actions[2])


def test_it_trains(tmp_path):
    policy, told = soft_policy(), []
    before = {k: v.clone() for k, v in policy.trainable_state().items()}
    settings = TrainingConfig(steps=2, prompts_per_step=2, group_size=4, learning_rate=1e-3, self_check=1e-3)
    Trainer(policy, Objective.of({}), make_prompts(2), score_vowels, settings, tmp_path,
            report=lambda step, metrics: told.append(metrics)).train()  # fmt: skip
    assert all(math.isfinite(m["gradient_norm"]) for m in told)
    assert any(not torch.equal(v, before[k]) for k, v in policy.trainable_state().items())


def test_refusals():
    with pytest.raises(ConfigError, match=r"writes mixtures, which policy\.likelihood='tokens' cannot score"):
        engine_class(LanguagePolicyConfig(model="tiny", engine="soft"))
    with pytest.raises(PolicyError, match="expected the text of one token"):
        rows_of(soft_policy(until="no single token"))
    packed = make_policy(engine="soft", likelihood="soft_tokens", shared_prompt="on")
    with pytest.raises(PolicyError, match=r"policy\.shared_prompt=off"):
        packed.evaluate(rows_of(packed), ())
