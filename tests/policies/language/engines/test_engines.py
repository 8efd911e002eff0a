"""Engines: local decodes as before; one of a user's own is held to what it promises, told of weights, and stopped when
it stops following."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mmrl import plugins
from mmrl.errors import ConfigError, PolicyError, SelfCheckError
from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import check_config
from mmrl.policies import adapters
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.base import Draw
from mmrl.policies.language.engines.weights import named_weights
from mmrl.policies.language.sampling import Decoded, decode
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Request, Start
from mmrl.training.config import TrainingConfig
from mmrl.training.tracking import JsonLines, read_metrics
from mmrl.training.trainer import Trainer
from tests.policies.language.scenes import mixed_prompts, picture, requests
from tests.training.tiny import make_policy, make_prompts, score_vowels

OWN = '''
"""An engine with a model of its own: what vLLM is to a lab, made of what is at hand."""
import copy
from dataclasses import replace
from mmrl.policies.language.engines.base import EngineCapabilities
from mmrl.policies.language.engines.local import Local

class Apart:
    capabilities = EngineCapabilities(exact_log_probs=True, media=frozenset({"image"}))
    syncs = 0

    def __init__(self, setting):
        model = copy.deepcopy(setting.model())
        if hasattr(model.model, "merge_and_unload"):
            model.model = model.model.merge_and_unload()
        self.own = dict(model.model.named_parameters())
        self.local = Local(replace(setting, model=lambda: model))

    def write(self, contexts, budgets, draws):
        return self.local.write(contexts, budgets, draws)

    def sync(self, weights):
        type(self).syncs += 1
        left = set(self.own)
        for name, tensor in weights:
            self.own[name].data.copy_(tensor)
            left.remove(name)
        assert not left, left

class Rough(Apart):
    """As an engine in another precision: each log-prob off by up to .01."""
    capabilities = EngineCapabilities(exact_log_probs=False, media=frozenset({"image"}))

    def write(self, contexts, budgets, draws):
        done = super().write(contexts, budgets, draws)
        off = 0.01 * (done.tokens % 3 - 1) * (done.log_probs != 0)
        return replace(done, log_probs=done.log_probs + off)

class Boasting(Rough):
    capabilities = Apart.capabilities

class Stale(Apart):
    def sync(self, weights):
        if not self.syncs:
            super().sync(weights)

class StaleRough(Stale):
    capabilities = Rough.capabilities

class Blind(Apart):
    capabilities = EngineCapabilities(exact_log_probs=True)

class Forbidden(Apart):
    def write(self, contexts, budgets, draws):
        done = super().write(contexts, budgets, draws)
        done.tokens[1, 0] = self.local.setting.family.suppressed[0]
        return done

class Nothing:
    capabilities = Apart.capabilities
'''


@pytest.fixture
def engine(tmp_path):
    """`engine("Apart")` -> its reference, in a file of the test's own."""
    path = tmp_path / "engines.py"
    path.write_text(OWN)
    return lambda name: f"{path}:{name}"


def trainer_of(run_dir, policy, recipe="grpo", stages=None, rollout=(), environment=None, **changes):
    settings = {"steps": 3, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-3, "save_every": 0}
    run_dir.mkdir(parents=True, exist_ok=True)
    objective = load_recipe(recipe).objective | (stages or {})
    return Trainer(
        policy, Objective.of(objective), make_prompts(8), score_vowels,
        TrainingConfig(**settings | changes), run_dir, trackers=[JsonLines(run_dir / "metrics.jsonl", 0)],
        rollout=rollout, environment=environment,
    )  # fmt: skip


def trained(run_dir, policy, **changes):
    trainer = trainer_of(run_dir, policy, **changes)
    trainer.train()
    return trainer, read_metrics(run_dir / "metrics.jsonl")


class TestLocal:
    def test_writes_what_decoding_by_hand_writes(self, make_policy):
        """Rows split as `decode_rows` says, uniforms keyed by prompt and member: bit by bit."""
        policy, key = make_policy(decode_rows=6), Key(3)
        rows = policy.rollout(requests(mixed_prompts()), key)
        entries = [policy.encode(prompt) for prompt in mixed_prompts()]
        place, parts = torch.arange(4).repeat_interleave(4), []
        uniforms = torch.stack(
            [
                key.at(prompt=prompt.id, member=member, purpose="sample").uniform(10)
                for prompt in mixed_prompts()
                for member in range(4)
            ]
        )
        for some in torch.arange(16).split(6):
            asked, context = torch.unique(place[some], return_inverse=True)
            chosen, budget = [entries[i] for i in asked.tolist()], torch.full((len(some),), 10)
            parts.append(decode(policy.inner, chosen, context, uniforms[some], budget, policy.stopping))
        by_hand = Decoded.join(parts)
        width = rows.actions.shape[1]
        assert torch.equal(rows.actions, by_hand.tokens[:, :width])
        assert torch.equal(rows.old_log_probs, by_hand.log_probs[:, :width])
        assert torch.equal(rows.length, by_hand.length)

    def test_a_draw_belongs_to_its_place(self):
        draw = Draw(Key(1), 5)
        assert torch.equal(replace(draw, begun=2).uniforms()[:3], draw.uniforms()[2:])
        assert draw.seed == Draw(Key(1), 5).seed != replace(draw, begun=1).seed

    def test_rows_carry_the_version_of_the_weights(self, tmp_path):
        policy = make_policy()
        trained(tmp_path, policy, steps=2)
        rows = policy.rollout(requests(make_prompts(2)), Key(0))
        assert rows.replay["version"].tolist() == [2] * 8
        other = make_policy()
        other.load_state_dict(json.loads(json.dumps(policy.state_dict())))
        assert other.bridge.version == 2

    def test_trains_as_an_engine_apart_does(self, tmp_path, engine):
        """Same weights, same draws: the same run, told of the weights once before each step."""
        _, one = trained(tmp_path / "local", make_policy())
        policy = make_policy(engine=engine("Apart"))
        _, other = trained(tmp_path / "apart", policy, check_every=1)
        for name in ("reward/mean", "gradient_norm", "length/mean"):
            assert [m[name] for m in other] == pytest.approx([m[name] for m in one], rel=1e-5), name
        assert type(policy.bridge.engine).syncs == 3
        assert all(m["engine/gap_max"] < 1e-4 for m in other)
        assert all(m["engine/gap_of_clip"] == pytest.approx(m["engine/gap_mean"] / 0.2) for m in other)
        assert not any(name.startswith("engine/") for name in one[0])


class TestWeights:
    def test_come_merged_one_by_one(self, make_policy):
        policy = make_policy(lora={"rank": 2, "alpha": 8})
        with torch.no_grad():
            for name, weight in policy.inner.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        merged = dict(adapters.merged_copy(policy.inner.model).named_parameters())
        found = dict(named_weights(policy.inner.model))
        assert found.keys() == merged.keys()
        for name, weight in found.items():
            assert torch.equal(weight, merged[name]), name
        before = dict(adapters.unwrapped(make_policy().inner.model).named_parameters())
        assert sum(not torch.equal(before[name], weight) for name, weight in found.items()) > 5

    def test_an_adapter_trains_through_an_engine_apart(self, tmp_path, engine):
        policy = make_policy(engine=engine("Apart"), lora={"rank": 2, "alpha": 8})
        _, metrics = trained(tmp_path / "run", policy, check_every=1, learning_rate=1e-2)
        assert all(m["engine/gap_max"] < 1e-4 for m in metrics)

    def test_that_are_loaded_are_told(self, engine):
        policy = make_policy(engine=engine("Apart"))
        asked = requests(make_prompts(1))
        policy.rollout(asked, Key(0))
        state = policy.trainable_state()
        policy.load_trainable_state({name: weight + 0.05 * torch.randn_like(weight) for name, weight in state.items()})
        rows = policy.rollout(asked, Key(0))
        assert (policy.evaluate(rows, weights="old").log_probs - rows.old_log_probs).abs().max() < 1e-4


class TestPromises:
    def test_an_engine_that_is_not_exact_is_refused_or_corrected(self, tmp_path, engine):
        with pytest.raises(ConfigError, match=r"not exact.*old_log_probs=trainer"):
            make_policy(engine=engine("Rough"))
        policy = make_policy(engine=engine("Rough"), old_log_probs="trainer")
        rows = policy.rollout(requests(make_prompts(2)), Key(0))
        exact = policy.evaluate(rows, weights="old").log_probs
        assert (rows.old_log_probs - exact).abs().max() < 1e-4
        assert 0.009 < (rows.columns["sampler_log_probs"] - exact).abs().max() < 0.011
        _, metrics = trained(tmp_path / "run", policy)
        assert all(0.001 < m["engine/gap_mean"] < 0.011 and m["engine/gap_max"] < 0.011 for m in metrics)

    def test_a_correction_is_made_under_what_was_shown_and_continued(self, engine):
        """Rows of a hint, and rows that go on from another row, keep both log-probs at every token."""
        plain, hint = make_prompts(1)[0], replace(make_prompts(1)[0], images=[picture("yellow")])
        policy = make_policy(engine=engine("Rough"), old_log_probs="trainer")
        first = policy.rollout([Request(plain, 2, 0)], Key(0))
        row = first.index([0])
        at = min(2, int(row.length[0]) - 1)
        rows = policy.rollout(
            [Request(plain, 2, 0, 2, shown=hint), Request(plain, 2, 0, 4, start=Start(row, at))], Key(0)
        )
        exact = make_policy().rollout(
            [Request(plain, 2, 0, 2, shown=hint), Request(plain, 2, 0, 4, start=Start(row, at))], Key(0)
        )
        assert torch.equal(rows.actions, exact.actions)
        assert (rows.old_log_probs - exact.old_log_probs).abs().max() < 1e-4
        off = (rows.columns["sampler_log_probs"] - rows.old_log_probs).abs()
        assert 0.009 < off[:2].max() < 0.011 and off.max() < 0.011
        assert torch.equal(rows.columns["sampler_log_probs"][2, :at], row.columns["sampler_log_probs"][0, :at])

    def test_a_false_promise_is_stopped_before_the_first_update(self, tmp_path, engine):
        trainer = trainer_of(tmp_path / "run", make_policy(engine=engine("Boasting")))
        with pytest.raises(SelfCheckError, match="step 1: engine and trainer disagree"):
            trainer.train()
        assert trainer.updates == 0

    @pytest.mark.parametrize(
        ("name", "options"), [("Stale", {}), ("StaleRough", {"old_log_probs": "trainer"})], ids=["exact", "corrected"]
    )
    def test_a_stale_engine_is_stopped_at_the_next_check(self, tmp_path, engine, name, options):
        trainer = trainer_of(
            tmp_path / "run", make_policy(engine=engine(name), **options), check_every=2, learning_rate=1e-2, steps=5
        )
        with pytest.raises(SelfCheckError, match=r"step 3: .*no longer follows the weights") as raised:
            trainer.train()
        assert "\n" not in str(raised.value) and trainer.step == 2

    @pytest.mark.parametrize(
        ("name", "says"),
        [("Blind", "'p0' shows images"), ("Forbidden", "which the policy never samples")],
    )
    def test_what_it_cannot_do_is_one_line(self, engine, name, says):
        with pytest.raises(PolicyError, match=says):
            make_policy(engine=engine(name)).rollout(requests(make_prompts(1)), Key(0))

    def test_a_name_that_is_none(self, engine):
        for name, says in (("vlm", "unknown engine 'vlm'"), (engine("Nothing"), "lacks write, sync")):
            with pytest.raises(ConfigError, match=says):
                make_policy(engine=name)


class TestPrompts:
    def test_one_placeholder_a_medium_and_the_same_once_expanded(self, make_policy):
        policy = make_policy()
        setting = policy.bridge.setting
        token = policy.family.image_token
        seen = {}

        def write(contexts, budgets, draws):
            seen.update({context.prompt.id: context for context in contexts})
            return type(policy.bridge.engine).write(policy.bridge.engine, contexts, budgets, draws)

        policy.bridge.engine.write = write
        policy.rollout(requests(mixed_prompts()), Key(0))
        for prompt in mixed_prompts():
            context = seen[prompt.id]
            bare, ids = setting.unexpanded(context), context.encoded.ids.tolist()
            assert bare.count(token) == len(prompt.images)
            assert [i for i in bare if i != token] == [i for i in ids if i != token]
            context.check_ids(ids)
            with pytest.raises(PolicyError, match="they part at 1"):
                context.check_ids([ids[0], *ids])


class TestRecipes:
    def test_the_column_of_the_engine_is_refused_without_a_maker(self, engine):
        asked = {"modality": "vlm", "recipe": "grpo", "policy": {"model": "asset:tiny_vlm"}, "data": {"train": "x"}}
        asked["objective"] = {"credit": [{"name": "importance_correction"}]}
        with pytest.raises(ConfigError, match=r"sampler_log_probs.*old_log_probs=trainer"):
            check_config(read_config(asked), {})
        asked["policy"]["old_log_probs"] = "trainer"
        check_config(read_config(asked), {})
        asked["policy"] |= {"old_log_probs": "sampler", "engine": engine("Rough")}
        with pytest.raises(ConfigError, match="not exact"):
            check_config(read_config(asked), {})

    @pytest.mark.parametrize(
        ("recipe", "credit"), [("minirl_stabilising", ()), ("grpo", ({"name": "importance_correction"},))]
    )
    def test_that_reads_it_trains(self, tmp_path, engine, recipe, credit):
        policy = make_policy(engine=engine("Rough"), old_log_probs="trainer")
        before = {name: weight.clone() for name, weight in policy.trainable_state().items()}
        _, metrics = trained(
            tmp_path / "run", policy, recipe=recipe, stages={"credit": credit} if credit else {}, steps=1
        )
        assert 0 < metrics[0]["engine/gap_mean"] < 0.011
        assert any(not torch.equal(weight, before[name]) for name, weight in policy.trainable_state().items())

    def test_defaults_change_nothing(self):
        config = LanguagePolicyConfig(model="tiny")
        assert (config.engine, config.old_log_probs) == ("local", "sampler")
        assert not plugins.is_reference(config.engine)
