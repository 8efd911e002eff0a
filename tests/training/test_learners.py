"""Learners without a gradient: ESSA's search over an adapter, and lessons in words."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import check_config, train
from mmrl.recipes import load_recipe
from mmrl.record import Prompt, Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.context import ContextTrainer, told
from mmrl.training.evolution import EvolutionTrainer
from mmrl.training.learners import learner_of
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import RIGHT, hinted_prompts, score_right, taught
from tests.training.tiny import make_policy, make_prompts, score_vowels

SIZES = {"steps": 4, "prompts_per_step": 2, "group_size": 4, "save_every": 1}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that was trained, as far as its factors are not zero."""
    policy = make_policy(lora={"rank": 2})
    for name, parameter in policy.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("adapter")
    policy.save_pretrained(folder)
    return folder


def essa(adapter, folder, report=lambda step, metrics: None, **changes) -> EvolutionTrainer:
    settings = TrainingConfig(**{**SIZES, **changes})
    folder.mkdir(exist_ok=True)
    return EvolutionTrainer(
        make_policy(adapter=str(adapter)), Objective.of({}), make_prompts(2), score_vowels, settings, folder,
        report=report, population=8, sigma=0.5,
    )  # fmt: skip


class TestEssa:
    def test_it_moves_singular_values_without_a_backward_pass(self, adapter, tmp_path, monkeypatch):
        def never(*_, **__):
            raise AssertionError("a backward pass")

        monkeypatch.setattr(torch.Tensor, "backward", never)
        monkeypatch.setattr(torch.autograd, "backward", never)
        metrics = []
        trainer = essa(adapter, tmp_path, report=lambda step, m: metrics.append(m), steps=1)
        before = trainer.values.vector()
        trainer.train()
        assert metrics[0]["rollouts"] == 8 * 2 * 4 and (trainer.search.mean - before).abs().min() > 0
        for factor, moved in zip(trainer.values.factors, trainer.search.mean.split(trainer.values.counts), strict=True):
            found = factor.u.T @ factor.parameter.detach().double() @ factor.vh.T
            assert torch.allclose(found, torch.diag(moved), atol=1e-5), "and leaves their directions"

    def test_an_adapter_that_learned_a_little_is_searched_to_a_better_one(self, tmp_path, monkeypatch):
        """Supervised steps make "ae" likely at a fifth; the search takes it further, and no backward pass runs."""
        prompts, folder = hinted_prompts(2), tmp_path / "adapter"
        policy = taught([(p, RIGHT) for p in prompts], steps=11, lora={"rank": 2})
        policy.save_pretrained(folder)

        def never(*_, **__):
            raise AssertionError("a backward pass")

        monkeypatch.setattr(torch.Tensor, "backward", never)
        settings = TrainingConfig(steps=10, prompts_per_step=2, group_size=8, save_every=100)
        metrics: list[dict] = []
        trainer = EvolutionTrainer(
            make_policy(adapter=str(folder)), Objective.of({}), prompts, score_right, settings, tmp_path,
            report=lambda step, m: metrics.append(m), population=12, sigma=0.1,
        )  # fmt: skip

        def chance():
            rows = trainer.policy.written(prompts, [RIGHT] * 2)
            return rows.old_log_probs.sum(1).exp().mean().item()

        before = chance()
        trainer.train()
        assert 0.1 < before < 0.3 and chance() > 1.5 * before
        assert metrics[-1]["reward/mean"] > metrics[0]["reward/mean"] - 0.05

    def test_a_resumed_search_is_the_same_search(self, adapter, tmp_path):
        whole = essa(adapter, tmp_path / "whole")
        whole.train()
        essa(adapter, tmp_path / "parts", steps=2).train()
        resumed = essa(adapter, tmp_path / "parts")
        resumed.train(tmp_path / "parts" / "checkpoints" / "step-000002")
        assert torch.equal(whole.search.mean, resumed.search.mean)
        for name, value in whole.policy.trainable_state().items():
            assert torch.equal(value, resumed.policy.trainable_state()[name]), name

    def test_what_it_cannot_do_is_refused(self, adapter, tmp_path):
        with pytest.raises(ConfigError, match="factors are zero"):
            EvolutionTrainer(
                make_policy(lora={"rank": 2}), Objective.of({}), make_prompts(2), score_vowels,
                TrainingConfig(**SIZES), tmp_path,
            )  # fmt: skip


def by_turns(outputs, prompts) -> Scores:
    """Every other answer is right: each group has a contrast."""
    reward = torch.tensor([float(i % 2) for i in range(len(outputs))])
    return Scores({"r": reward}, reward, reward.clone())


def lessons(tmp_path, policy, score=by_turns, **options) -> tuple[ContextTrainer, list[dict]]:
    metrics: list[dict] = []
    trainer = ContextTrainer(
        policy, Objective.of({}), make_prompts(2), score, TrainingConfig(**SIZES), tmp_path,
        report=lambda step, m: metrics.append(m), **options,
    )  # fmt: skip
    return trainer, metrics


class TestTrainingFree:
    def test_context_is_written_and_weights_stay(self, tmp_path):
        """The tiny model writes no list of operations: that is counted, and nothing is made up in its place."""
        policy = make_policy()
        before = {n: v.clone() for n, v in policy.trainable_state().items()}
        trainer, metrics = lessons(tmp_path, policy)
        trainer.train()
        assert all(torch.equal(before[n], v) for n, v in policy.trainable_state().items())
        assert not (tmp_path / "checkpoints").exists()
        assert [m["context/asked"] for m in metrics] == [2] * 4 == [m["context/unreadable"] for m in metrics]
        assert json.loads((tmp_path / "context.json").read_text()) == {"step": 4, "lessons": {}}

    def test_lessons_that_are_there_are_shown(self, tmp_path):
        (tmp_path / "old.json").write_text(json.dumps({"lessons": {"1": "look twice"}}))
        trainer, metrics = lessons(tmp_path, make_policy(), start=str(tmp_path / "old.json"))
        trainer.train()
        text = (tmp_path / "context.txt").read_text()
        assert text.endswith("1. look twice") and metrics[-1]["context/lessons"] == 1
        assert told(make_prompts(1)[0], text).messages[0] == {"role": "system", "content": text}

    def test_groups_without_a_contrast_are_asked_nothing(self, tmp_path):
        def right(outputs, prompts):
            reward = torch.ones(len(outputs))
            return Scores({"r": reward}, reward, reward.clone())

        trainer, metrics = lessons(tmp_path, make_policy(), score=right)
        trainer.train()
        assert [m["context/asked"] for m in metrics] == [0] * 4

    def test_a_system_message_goes_first(self):
        prompt = Prompt("a", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
        assert told(prompt, "Lessons").messages[0]["content"] == "Be brief.\n\nLessons" and told(prompt, "") is prompt

    def test_the_question_holds_its_fields(self, tmp_path):
        with pytest.raises(ConfigError, match=r"ask lacks \{answers\}"):
            lessons(tmp_path, make_policy(), ask="{lessons}")


def test_a_learner_is_chosen_by_name():
    assert learner_of("gradient").func is Trainer
    assert learner_of({"name": "essa", "population": 6}).keywords == {"population": 6}
    for wrong, message in (
        ("esa", "nearest|essa"), ({"name": "essa", "popul": 6}, "population"),
        ({"name": "essa", "population": "many"}, "valid integer"), ({"name": "gradient", "sigma": 1}, "sigma"),
        ({"name": [{}]}, "unknown learner"), ({}, "unknown learner"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            learner_of(wrong)


def test_recipes_bring_their_learner(tmp_path):
    assert load_recipe("essa").learner["name"] == "essa"
    config = read_config({"recipe": "training_free_grpo", "policy": {"model": "m"}, "rewards": ["accuracy"]}, (), "vlm")
    assert config.learner["name"] == "training_free"
    with pytest.raises(ConfigError, match=r"learner\.start=RUN/context\.json"):
        train(config, resume=tmp_path)
    broken = read_config({"recipe": "essa", "learner": {"sigm": 1}, "policy": {"model": "m"}}, (), "vlm")
    with pytest.raises(ConfigError, match="sigma"):
        check_config(broken)
