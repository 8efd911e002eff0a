"""Responses of several turns from an engine with a model of its own: the rows are those of the policy that writes them
itself, and the trainer's log-probs can take the place of the engine's."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import check_config
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.rollout.environments.base import Here, Observation
from tests.policies.language.engines.test_engines import OWN
from tests.policies.language.scenes import image_prompt, mixed_prompts, picture
from tests.policies.language.test_turns import BLUE, RED, Shows, two_pictures
from tests.training.tiny import make_policy

TURNS = """
class Talks(Apart):
    capabilities = replace(Apart.capabilities, turns=True)
    asked = []

    def write(self, contexts, budgets, draws):
        self.asked.append((list(contexts), draws))
        return super().write(contexts, budgets, draws)

class TalksRoughly(Rough):
    capabilities = replace(Rough.capabilities, turns=True)
"""
STOPS = {"stop_tokens": list(range(0, 1200, 2))}


@pytest.fixture
def engine(tmp_path):
    (tmp_path / "engines.py").write_text(OWN + TURNS)
    return lambda name: f"{tmp_path / 'engines.py'}:{name}"


def asked(count=3):
    return [Request(prompt, count, group=i) for i, prompt in enumerate(mixed_prompts())]


def spoken(policy, requests=None, **options):
    return policy.converse(requests or asked(), Key(3), Here(two_pictures()), **options)


def test_the_rows_are_those_of_the_policy_itself(engine):
    """Bit for bit, of an engine that follows the draws: every run is asked with all that stands, under its own key."""
    rows, own = spoken(make_policy(engine=engine("Talks"), **STOPS)), spoken(make_policy(**STOPS))
    assert (rows.columns["turn"] == 2).any()
    for name in ("actions", "old_log_probs", "mask", "owner", "extent"):
        assert torch.equal(getattr(rows, name), getattr(own, name)), name


def test_each_turn_brings_the_whole_row(engine):
    """Ids with a placeholder for each medium, the media in their order, what is expanded; a seed of its own."""
    policy = make_policy(engine=engine("Talks"), **STOPS)
    spoken(policy)
    setting, token, seeds = policy.bridge.setting, policy.family.image_token, []
    for contexts, draws in policy.bridge.engine.asked:
        for context in contexts:
            pictures = [image for prompt in context.prompts for image in prompt.images]
            bare, ids = setting.unexpanded(context), context.encoded.ids.tolist()
            assert bare.count(token) == len(pictures)
            assert [i for i in bare if i != token] == [i for i in ids if i != token]
            assert [p.images for p in context.shown] == [[RED], [BLUE]][: len(context.shown)]
        seeds += [draw.seed for draw in draws]
    assert len(seeds) == len(set(seeds)) > 12
    assert max(len(c.shown) for contexts, _ in policy.bridge.engine.asked for c in contexts) == 2


@pytest.mark.parametrize("name", ["Talks", "TalksRoughly", None])
def test_the_trainers_log_probs(engine, name):
    """Of each run, pictures in between; the engine's own stand beside them."""
    policy = make_policy(**({"engine": engine(name)} if name else {}), old_log_probs="trainer", **STOPS)
    rows = spoken(policy)
    judged = policy.evaluate(rows, weights="old").log_probs
    theirs = (rows.columns["sampler_log_probs"] - rows.old_log_probs).abs()
    assert (judged - rows.old_log_probs).abs().max() < 1e-5 and (theirs.max() > 5e-3) == (name == "TalksRoughly")
    assert (rows.old_log_probs[~rows.mask] == 0).all() and (theirs[~rows.mask] == 0).all()


def test_rows_with_something_shown_besides_are_scored_as_they_were_written(engine):
    """Under the prompt with a picture more, whose response stands at other positions; they train under their own."""
    policy = make_policy(engine=engine("Talks"), old_log_probs="trainer", **STOPS)
    hinted = image_prompt("hinted", picture("red", (96, 64)), picture("black", (64, 64)))
    rows = spoken(policy, [Request(mixed_prompts()[0], 6, 0, shown=hinted)])
    assert any(rows.media)
    assert (rows.columns["sampler_log_probs"] - rows.old_log_probs).abs().max() < 1e-5
    assert (policy.evaluate(rows, weights="old").log_probs - rows.old_log_probs).abs().max() > 1e-4


def test_media_that_the_engine_is_not_shown_are_refused_by_turn(engine):
    policy = make_policy(engine=engine("Talks"), **STOPS)
    policy.bridge.engine.capabilities = type(policy.bridge.engine).capabilities.__class__(True, turns=True)
    environment = Here(Shows(Observation.of("look", images=[RED])))
    with pytest.raises(PolicyError, match=r"'bare, what the environment shows after turn 1' shows images"):
        policy.converse([Request(image_prompt("bare"), 8, 0)], Key(3), environment)


def test_an_engine_that_knows_no_turns_is_refused_before_anything_is_spent(engine):
    asked = {"modality": "vlm", "recipe": "grpo", "data": {"train": "x"}, "environment": "calculator"}
    for policy in ({}, {"old_log_probs": "trainer"}, {"engine": engine("Talks")}, {"engine": "vllm"}):
        check_config(read_config({**asked, "policy": {"model": "asset:tiny_vlm", **policy}}), {})
    with pytest.raises(PolicyError, match="several turns"):
        make_policy(engine=engine("Apart")).check_turns()
    with pytest.raises(ConfigError, match=r"policy\.engine.*several turns.*another that says turns"):
        check_config(read_config({**asked, "policy": {"model": "asset:tiny_vlm", "engine": engine("Apart")}}), {})
