"""vLLM in the process that trains: it reads what the trainer reads, its log-probs are the trainer's, and it follows."""

from __future__ import annotations

import gc
import os
import random

import numpy as np
import psutil
import pytest
import torch

from mmrl.errors import PolicyError, SelfCheckError
from mmrl.objective import Objective
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Request, Start
from mmrl.rollout.environments.base import Here, Observation
from mmrl.training.config import TrainingConfig
from mmrl.training.tracking import JsonLines, read_metrics
from mmrl.training.trainer import Trainer
from tests.policies.language.scenes import clip_prompts, image_prompt, mixed_prompts, picture, requests
from tests.policies.language.test_turns import Shows, two_pictures
from tests.training.tiny import make_prompts, score_vowels

EXACT = 2e-5
"""Float32, in two implementations of attention."""


STOPS = {"stop": ["a", "on"], "stop_tokens": list(range(40, 60)), "max_new_tokens": 12}


def gap(policy, rows):
    """The engine's log-probs of rows against a pass of the trainer's."""
    return (policy.evaluate(rows, weights="old").log_probs - rows.old_log_probs).abs().max().item()


def moved(policy, amount=0.05):
    with torch.no_grad():
        for weight in policy.inner.parameters():
            if weight.requires_grad:
                weight.add_(amount * torch.randn_like(weight))
    policy.after_update()


@pytest.fixture(scope="module")
def policy(make_policy):
    """Random weights seldom write an end token: a few ids and a string end rows too."""
    return make_policy(temperature=0.7, **STOPS)


class TestRows:
    def test_are_scored_as_they_were_written(self, policy):
        """No image, one, two of unlike sizes; a temperature. Under another picture they are scored otherwise."""
        rows = policy.rollout(requests(mixed_prompts()), Key(0))
        assert gap(policy, rows) < EXACT
        assert not torch.isin(rows.actions[rows.mask], torch.tensor(policy.family.suppressed)).any()
        assert rows.length.min() >= 1 and rows.length.max() <= 12 and len(set(rows.length.tolist())) > 1
        other = [image_prompt(p.id, *[picture("black", i.size) for i in p.images]) for p in mixed_prompts()]
        rows.encoded[:] = [policy.encode(prompt) for prompt in other]
        assert gap(policy, rows) > 100 * EXACT

    def test_depend_on_their_keys_alone(self, policy):
        asked = requests(mixed_prompts())
        rows, again, other = (policy.rollout(asked, Key(seed)) for seed in (1, 1, 2))
        assert torch.equal(rows.actions, again.actions)
        assert rows.outputs != other.outputs

    def test_go_on_from_a_prefix_and_from_another_row(self, policy):
        prompt = mixed_prompts()[1]
        first = policy.rollout([Request(prompt, 2, 0)], Key(3))
        at = int(first.length[0]) - 1 or 1
        prefix = first.actions[0, :1]
        rows = policy.rollout(
            [Request(prompt, 2, 0, 2, prefix=prefix), Request(prompt, 2, 0, 4, start=Start(first.index([0]), at))],
            Key(3),
        )
        assert rows.actions[:2, 0].tolist() == prefix.tolist() * 2 and not rows.mask[:2, 0].any()
        assert gap(policy, rows) < EXACT

    def test_of_prompts_that_do_not_fit_into_one_pass(self, policy):
        """More new ids than vLLM reads at once (4,096 on a CPU): on CPUs no prompt may be read in parts."""
        long = [image_prompt(f"{n}", question=" ".join(f"{n} {i}" for i in range(100))) for n in range(24)]
        rows = policy.rollout(requests(long, 1), Key(5))
        assert sum(len(policy.encode(prompt)) for prompt in long) > 4096 and gap(policy, rows) < EXACT

    def test_end_where_the_policy_ends_them(self, policy):
        """At an end token or behind a stop string, both of which stay; else at the budget."""
        rows = policy.rollout([Request(make_prompts(1)[0], 64, 0)], Key(4))
        ends = set(policy.stopping.ids)
        why = {"id": 0, "string": 0, "budget": 0}
        for ids, length, finish in zip(rows.actions.tolist(), rows.length.tolist(), rows.finish, strict=True):
            before, text = map(policy.processor.tokenizer.decode, (ids[: length - 1], ids[:length]))
            assert not ends & set(ids[: length - 1]) and "a" not in before and "on" not in before
            by = "id" if ids[length - 1] in ends else "string" if "a" in text or "on" in text else "budget"
            assert finish == ("length" if by == "budget" else "stop") and (by != "budget" or length == 12)
            why[by] += 1
        assert all(why.values()), why

    def test_greedy_answers_are_the_likeliest(self, policy, make_policy):
        local = make_policy(engine="local", **STOPS)
        local.load_trainable_state(policy.trainable_state())
        asked = requests(mixed_prompts(), 1)
        assert policy.rollout(asked, Key(0), greedy=True).outputs == local.rollout(asked, Key(0), greedy=True).outputs


class TestWeights:
    def test_are_followed_and_staleness_shows(self, policy):
        asked = requests(mixed_prompts())
        policy.rollout(asked, Key(0))
        moved(policy)
        policy.bridge.held = policy.bridge.version  # as if it had been told
        stale = gap(policy, policy.rollout(asked, Key(0)))
        policy.bridge.held = None
        rows = policy.rollout(asked, Key(0))
        assert stale > 0.1 and gap(policy, rows) < EXACT
        assert rows.replay["version"].tolist() == [policy.bridge.version] * len(rows)

    @pytest.mark.parametrize("how", ["merged", "adapter"])
    def test_of_an_adapter(self, make_policy, how):
        policy = make_policy(lora={"rank": 4, "alpha": 16}, engine={"name": "vllm", "lora": how})
        asked = requests(mixed_prompts())
        gaps = []
        for _ in range(3):
            gaps.append(gap(policy, policy.rollout(asked, Key(0))))
            moved(policy)
        assert max(gaps) < EXACT
        assert gap(policy, policy.rollout(asked, Key(0))) < EXACT

    def test_in_bfloat16_differ_on_average_by_rounding(self, make_policy):
        policy = make_policy(dtype="bfloat16")
        rows = policy.rollout(requests(mixed_prompts()), Key(0))
        apart = (policy.evaluate(rows, weights="old").log_probs - rows.old_log_probs).abs()[rows.mask]
        assert 1e-4 < apart.mean() < 0.03


class TestTurns:
    """What an environment shows between the runs of a response: two pictures, one after the other."""

    def test_rows_are_scored_as_they_were_written(self, policy):
        asked = [Request(prompt, 8, group=i) for i, prompt in enumerate(mixed_prompts())]
        rows = policy.converse(asked, Key(3), Here(two_pictures()))
        assert (rows.columns["turn"] == 2).any() and any(rows.media) and not all(rows.media)
        assert gap(policy, rows) < EXACT
        again = policy.converse(asked, Key(3), Here(two_pictures()))
        assert torch.equal(rows.actions, again.actions)

    def test_more_pictures_than_it_was_made_for(self, policy):
        many = Shows(Observation.of("look", images=[picture("red", (48, 48))] * 9))
        with pytest.raises(PolicyError, match=r"shows 10 images, what an environment.*policy\.engine\.images=8"):
            policy.converse([Request(make_prompts(1)[0], 64, 0)], Key(4), Here(many))


class TestMedia:
    def test_clips_are_read_as_the_trainer_reads_them(self, make_policy):
        """One clip, two of unlike sizes, an image beside one, neither: the times of frames stand in the ids."""
        policy = make_policy(videos=True, engine={"name": "vllm", "videos": 3}, **STOPS)
        rows = policy.rollout(requests(clip_prompts()), Key(0))
        assert gap(policy, rows) < EXACT
        shows = Shows(Observation.of("look", videos=[clip_prompts()[0].videos[0]]))
        rows = policy.converse([Request(p, 4, group=i) for i, p in enumerate(clip_prompts())], Key(0), Here(shows))
        assert any(rows.media) and gap(policy, rows) < EXACT

    def test_pictures_of_another_family(self, make_policy):
        """Its clips are refused by name: vLLM puts what follows them elsewhere than transformers."""
        policy = make_policy("qwen2_5_vl", videos=True)
        assert gap(policy, policy.rollout(requests(mixed_prompts()), Key(0))) < EXACT
        with pytest.raises(PolicyError, match="'clip' shows videos, and engine 'vllm' takes image"):
            policy.rollout(requests(clip_prompts()[:1]), Key(0))

    def test_clips_keep_their_own_mean_and_deviation(self, make_policy):
        """vLLM would normalize them as pictures: the ids are equal then, and log-probs are not."""
        policy = make_policy(videos=True)
        processor = policy.processor
        assert tuple(processor.image_processor.image_mean) != tuple(processor.video_processor.image_mean)
        wrong = make_policy(videos=True, engine={"name": "vllm", "arguments": {"mm_device_do_normalize": True}})
        asked = requests(clip_prompts()[:1])
        assert gap(policy, policy.rollout(asked, Key(0))) < EXACT
        assert gap(wrong, wrong.rollout(asked, Key(0))) > 100 * EXACT

    def test_another_expansion_is_refused_by_prompt(self, policy):
        prompt = mixed_prompts()[0]
        encode = policy.encode
        policy.encode = lambda shown: encode(image_prompt(shown.id, picture("red", (128, 64))))
        try:
            with pytest.raises(PolicyError, match=r"prompt 'one': the engine reads \d+ ids and the trainer \d+"):
                policy.rollout([Request(prompt, 2, 0)], Key(0))
        finally:
            policy.encode = encode

    def test_sizes_of_the_policy_are_vllms(self, make_policy):
        policy = make_policy(max_pixels=48 * 48)
        assert gap(policy, policy.rollout(requests([image_prompt("big", picture("red", (160, 96)))]), Key(0))) < EXACT


class TestTraining:
    @pytest.fixture
    def trainer(self, policy, make_policy, tmp_path):
        """Of the policy that all these tests share, from the checkpoint's weights on."""
        policy.load_trainable_state(make_policy(engine="local").trainable_state())

        def made(environment=None, **changes):
            settings = {"steps": 5, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-2, "save_every": 0}
            objective = Objective.of(load_recipe("grpo").objective)
            trackers = [JsonLines(tmp_path / "metrics.jsonl", 0)]
            config = TrainingConfig(**settings | changes)
            return Trainer(
                policy, objective, make_prompts(8), score_vowels, config, tmp_path, trackers=trackers,
                environment=environment,
            )  # fmt: skip

        asked = policy.config
        yield made
        policy.config = asked

    def test_gaps_stay_below_rounding(self, trainer, tmp_path):
        trainer(check_every=2).train()
        metrics = read_metrics(tmp_path / "metrics.jsonl")
        checked = [m["engine/gap_max"] for m in metrics if "engine/gap_max" in m]
        assert len(checked) == 3 and max(checked) < 1e-4

    @pytest.mark.parametrize("whose", ["sampler", "trainer"])
    def test_in_an_environment(self, trainer, policy, tmp_path, whose):
        """Every step is checked; what the policy learned of its runs is what the engine goes on with."""
        policy.config = policy.config.model_copy(update={"old_log_probs": whose})
        training = trainer(Here(two_pictures()), steps=3, check_every=1)
        before = {name: weight.clone() for name, weight in policy.trainable_state().items()}
        training.train()
        metrics = read_metrics(tmp_path / "metrics.jsonl")
        assert all(m["environment/calls_per_row"] > 0.5 and m["engine/gap_max"] < 1e-4 for m in metrics)
        assert all(m["gradient_norm"] > 0 for m in metrics) and len(metrics) == 3
        assert any(not torch.equal(weight, before[name]) for name, weight in policy.trainable_state().items())

    def test_a_stale_engine_stops_the_run_in_a_line(self, trainer, policy):
        training, engine, told = trainer(check_every=2), policy.bridge.engine, []

        def sync(weights):
            if not told:
                type(engine).sync(engine, weights)
            told.append(1)

        engine.sync = sync
        try:
            with pytest.raises(SelfCheckError, match=r"step 3: .*no longer follows the weights") as raised:
                training.train()
        finally:
            del engine.sync
        assert "\n" not in str(raised.value) and training.step == 2 and len(told) == 3


def test_its_memory_goes_when_the_next_is_made(policy, make_policy):
    """A cache has a GiB; two vLLMs after each other do not keep two. The one that others act through stays as it is."""
    asked = requests(mixed_prompts(), 1)

    def used():
        gc.collect()
        return psutil.Process().memory_info().rss / 2**30

    policy.bridge.held = None
    policy.rollout(asked, Key(0))
    before = used()
    for _ in range(2):
        make_policy().rollout(asked, Key(0))
    assert used() < before + 1.5
    assert gap(policy, policy.rollout(asked, Key(0))) < EXACT


def test_vllm_leaves_the_process_as_it_was(make_policy):
    """It seeds generators, takes `set_num_threads` away and preloads libraries into every child."""
    policy = make_policy()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = {n: v for n, v in os.environ.items() if not n.startswith("VLLM_")}, torch.get_num_threads()
    assert policy.bridge.engine.llm is not None
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert ({n: v for n, v in os.environ.items() if not n.startswith("VLLM_")}, torch.get_num_threads()) == before
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
