"""What a language policy scores is an object, which a file outside the package may bring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mmrl.errors import ConfigError, PolicyError, SelfCheckError
from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.likelihoods import Tokens
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import Scores
from mmrl.stages import Need
from mmrl.training.config import TrainingConfig
from mmrl.training.passes import plan_passes
from mmrl.training.trainer import Trainer
from tests.policies.language.my_likelihood import SHARE
from tests.policies.language.scenes import mixed_prompts, requests

MINE = Path(__file__).with_name("my_likelihood.py")


def smoothed(policy, rollouts) -> torch.Tensor:
    """(B, T) by hand, from all logits of the plain likelihood's policy."""
    found = torch.zeros_like(rollouts.old_log_probs)
    states = policy._score(policy.inner, rollouts, policy._shown(rollouts, None), [Need("states")])
    hidden = states[Need("states").key][rollouts.mask]
    log_p = torch.log_softmax(policy.inner.logits(hidden), -1).clamp(min=-20)
    own = log_p.gather(1, rollouts.actions[rollouts.mask][:, None])[:, 0]
    return found.masked_scatter(rollouts.mask, (1 - SHARE) * own + SHARE * log_p.mean(1))


class TestOfYourOwn:
    def test_rollouts_and_scores_are_its(self, make_policy, rolled):
        policy = make_policy(likelihood=f"{MINE}:Smoothed")
        rollouts = policy.rollout(requests(mixed_prompts()), Key(3))
        plain = rolled["qwen3_vl"]
        assert torch.equal(rollouts.actions, plain.actions), "what is written does not depend on what is scored"
        with torch.no_grad():
            expected = smoothed(policy, rollouts)
            found = policy.evaluate(rollouts, [Need("entropy"), Need("spread")])
        torch.testing.assert_close(rollouts.old_log_probs, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.log_probs, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rollouts.columns["sampler_log_probs"], plain.old_log_probs, rtol=1e-5, atol=1e-5)
        assert (found[Need("entropy").key] > 0)[rollouts.mask].all() and Need("spread").key in found
        assert (found.log_probs - plain.old_log_probs).abs()[rollouts.mask].mean() > 1e-2

    def test_trains_with_a_stage_function_that_reads_its_probe(self, make_policy, tmp_path):
        policy = make_policy(likelihood=f"{MINE}:Smoothed")
        objective = Objective.of({"regularizers": [{"name": f"{MINE}:even", "coefficient": 0.1}]})
        metrics = train(policy, objective, tmp_path)
        assert all(m["gradient_norm"] > 0 for m in metrics) and metrics[0]["self_check/worst_gap"] < 1e-4
        assert "regularizer/even" in metrics[0]

    def test_one_that_wrongly_claims_the_samplers_numbers_is_stopped(self, make_policy, tmp_path):
        with pytest.raises(SelfCheckError):
            train(make_policy(likelihood=f"{MINE}:Unsaid"), Objective.of({}), tmp_path)

    def test_several_turns_are_refused_where_it_is_no_sampler_s(self, make_policy):
        with pytest.raises(PolicyError, match=r"policy\.likelihood=.*several turns.*expected tokens"):
            make_policy(likelihood=f"{MINE}:Smoothed").check_turns()


class TestRefusals:
    def test_at_configuration(self):
        settings = LanguagePolicyConfig(model="tiny", likelihood=f"{MINE}:Blind")
        objective = Objective.of({"regularizers": [{"name": "entropy_bonus", "coefficient": 0.1}]})
        plan_passes(objective, VisionPolicy, None, LanguagePolicyConfig(model="tiny"))
        with pytest.raises(ConfigError, match="'entropy'"):
            plan_passes(objective, VisionPolicy, None, settings)
        own = Objective.of({"regularizers": [{"name": f"{MINE}:even", "coefficient": 0.1}]})
        with pytest.raises(ConfigError, match="'spread'"):
            plan_passes(own, VisionPolicy, None, LanguagePolicyConfig(model="tiny"))

    @pytest.mark.parametrize(
        ("name", "says"), [("token", "unknown likelihood 'token'.*tokens"), (f"{MINE}:even", "expected a subclass")]
    )
    def test_a_name_that_is_none(self, name, says):
        with pytest.raises((ConfigError, ValidationError), match=says):
            LanguagePolicyConfig(model="tiny", likelihood=name)


def test_every_family_has_one_of_the_same_kind():
    from mmrl.policies.generation.likelihoods import LIKELIHOODS, likelihood_class
    from mmrl.policies.likelihood import Likelihood
    from mmrl.policies.masked.likelihoods import Masked

    for kind in (Tokens, Masked, *map(likelihood_class, LIKELIHOODS)):
        assert issubclass(kind, Likelihood) and kind.score is not Likelihood.score
        assert kind.actions is not Likelihood.actions and kind.trains in ("ratio", "matching")
        assert ("log_probs" in kind.offers()) == (kind.trains == "ratio")


def train(policy, objective, folder) -> list[dict]:
    metrics: list[dict] = []
    Trainer(
        policy, objective, mixed_prompts(), score, TrainingConfig(steps=2, prompts_per_step=2, group_size=4,
        learning_rate=1e-3, self_check=1e-4), folder, report=lambda step, values: metrics.append(values),
    ).train()  # fmt: skip
    return metrics


def score(outputs, prompts) -> Scores:
    worth = torch.tensor([float(sum(map(ord, o)) % 7) for o in outputs])
    return Scores({"worth": worth}, worth, (worth > 3).float())
