"""NLPO: what a lagged policy finds unlikely is never drawn, and rows are scored among what they could be."""

import math

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.names import engine_class
from mmrl.policies.language.engines.nlpo import nucleus
from mmrl.policies.language.likelihoods.limited import ALLOWED, limited
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels

NONE = torch.zeros(0, dtype=torch.long)


def nlpo_policy(**changes):
    engine = {"name": "nlpo", "every": 2, "most": 8, **changes.pop("engine", {})}
    return make_policy(engine=engine, likelihood="limited", **changes)


def rows_of(policy, *, greedy=False):
    with torch.no_grad():
        return policy.rollout([Request(p, 3, group=g) for g, p in enumerate(make_prompts(2))], Key(3), greedy=greedy)


def moved(policy):
    """The policy with other weights than those it lags behind."""
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for p in policy.module.parameters() if p.requires_grad):
        parameter.data += 0.2 * parameter.std().clamp(min=0.05) * torch.randn(parameter.shape, generator=generator)
    return policy


def test_worked_numbers_of_the_nucleus():
    """(.5, .3, .15, .05): .5 stays below .7, and the second crosses it."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    ids, cut = nucleus(logits, 0.7, 4, NONE)
    assert ids.tolist() == [[2, 4, 0, 0]] and not cut.any()
    assert nucleus(logits, 0.4, 4, NONE)[0].tolist() == [[2, 0, 0, 0]]
    assert nucleus(logits, 1.0, 4, NONE)[0].tolist() == [[2, 4, 1, 3]]
    assert nucleus(logits, 0.4, 4, NONE, least=3)[0].tolist() == [[2, 4, 1, 0]]
    ids, cut = nucleus(logits, 0.9, 2, torch.tensor([2]))
    assert ids.tolist() == [[2, 4, 3]] and cut.all(), "the end token may always be drawn, and two are too few"


def test_probabilities_are_those_among_the_allowed():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    found = limited(logits, torch.tensor([[2, 4, 0]], dtype=torch.int32)).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.625, 0.0, 0.375]]))
    assert torch.equal(limited(logits, torch.zeros(1, 3, dtype=torch.int32)), logits), "none at all is no limit"


@pytest.mark.parametrize(
    "changes", [{}, {"lora": {"rank": 2}}, {"shared_prompt": "off"}], ids=["full", "lora", "plain"]
)
def test_scored_again_a_row_is_worth_what_it_was_drawn_with(changes):
    policy = moved(nlpo_policy(**changes))
    rows = rows_of(policy)
    allowed = rows.replay[ALLOWED]
    assert ((allowed == rows.actions[..., None] + 1).any(-1) | ~rows.mask).all(), "only what was allowed was drawn"
    with torch.no_grad():
        found = policy.evaluate(rows).log_probs
        torch.testing.assert_close(found, rows.old_log_probs, atol=2e-4, rtol=0)
        rows.replay[ALLOWED] = torch.zeros_like(allowed)
        assert (rows.old_log_probs - policy.evaluate(rows).log_probs).max() > 1e-2, "among all it is less likely"
    assert 0 < float(policy.counted()["nlpo/allowed"]) <= 9
    assert "nlpo/allowed" not in policy.counted()


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
def test_the_mask_lags_is_copied_when_due_and_goes_into_checkpoints(changes):
    policy = nlpo_policy(**changes)
    first = {n: t.clone() for n, t in policy.bridge.tensors().items()}
    rows_before = rows_of(moved(policy), greedy=True)
    policy.after_batch()
    assert all(torch.equal(t, first[n]) for n, t in policy.bridge.tensors().items()), "not due yet"
    state, kept = policy.state_dict(), {n: t.clone() for n, t in policy.trainable_state().items()}
    policy.after_batch()
    now = policy.bridge.tensors()
    assert any(not torch.equal(t, first[n]) for n, t in now.items())
    other = nlpo_policy(**changes)
    other.load_trainable_state(kept)
    other.load_state_dict(state)
    again = rows_of(other, greedy=True)
    assert torch.equal(again.actions, rows_before.actions)
    assert torch.equal(again.replay[ALLOWED], rows_before.replay[ALLOWED])
    other.after_batch()
    assert all(torch.equal(t, now[n]) for n, t in other.bridge.tensors().items()), "due at the same batch"
    plain = {n: t for n, t in kept.items() if "|" not in n}
    with pytest.raises(PolicyError, match=r"has no lagged policy"):
        other.load_trainable_state(plain)


def test_it_trains(tmp_path):
    policy, told = nlpo_policy(), []
    settings = TrainingConfig(steps=2, prompts_per_step=2, group_size=4, learning_rate=1e-3, self_check=1e-3)
    Trainer(policy, Objective.of({}), make_prompts(2), score_vowels, settings, tmp_path,
            report=lambda step, metrics: told.append(metrics)).train()  # fmt: skip
    assert all(math.isfinite(m["gradient_norm"]) and m["nlpo/cut_fraction"] >= 0 for m in told)
    assert policy.bridge.engine.batches == 2


def test_refusals():
    with pytest.raises(ConfigError, match=r"policy\.likelihood='tokens' would score them among all"):
        engine_class(LanguagePolicyConfig(model="tiny", engine="nlpo"))
    with pytest.raises(ConfigError, match=r"engine nlpo keeps of a row, and policy\.engine='local' keeps none"):
        LanguagePolicyConfig(model="tiny", likelihood="limited")
    least = {"name": "nlpo", "least": 9, "most": 8}
    with pytest.raises(ConfigError, match=r"engine: least=9: expected at most `most`, 8"):
        engine_class(LanguagePolicyConfig(model="tiny", engine=least, likelihood="limited"))
    with pytest.raises(ConfigError, match=r"policy\.engine='nlpo': responses of several turns"):
        raise ConfigError(
            VisionPolicy.no_turns(LanguagePolicyConfig(model="tiny", engine="nlpo", likelihood="limited"))
        )
