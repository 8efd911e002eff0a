"""Rewards without a truth: more answers vote than train, and the recipe brings the reward that numbers answers."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import check_config, reward_panel
from mmrl.recipes import load_recipe
from mmrl.record import Prompt, Scores
from mmrl.rollout.votes import Votes
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, taught
from tests.rollout.plans import rows, step


def test_the_first_of_those_that_vote_train():
    plan = Votes(count=4).ask(step(size=2))
    assert [a.count for a in plan.ask] == [4, 4]
    plan = Votes(count=4).join(rows([0, 0, 0, 0], [0, 0, 0, 0]), step(1, size=2))
    assert not plan.asks and plan.counted.tolist() == plan.trained.tolist() == [True, True, False, False]
    with pytest.raises(ConfigError, match="count=4 is less than"):
        Votes(count=4).ask(step(size=8))


def named(*rewards):
    values = {"recipe": "ttrv", "policy": {"model": "m"}, "rewards": list(rewards)}
    return read_config(values, (), "vlm")


def test_the_recipe_brings_what_it_reads_beside_what_a_run_names():
    config = named()
    assert [(r.name, r.columns, r.weight) for r in config.rewards] == [("answer_number", ["answer"], 1.0)]
    check_config(config)
    with reward_panel(config) as panel:
        scored = panel.score(["<answer>3</answer>", "no idea"], [Prompt("a", []), Prompt("b", [])])
    assert scored.reward.tolist() == [1, 0] and scored.columns["answer"][0] > 0, "enough for a run of its own"
    assert [(r.name, r.weight) for r in named("accuracy").rewards] == [("accuracy", 1.0), ("answer_number", 0.0)]
    own = {"name": "answer_number", "weight": 1.0, "columns": ["answer"]}
    assert [(r.name, r.weight) for r in named(own).rewards] == [("answer_number", 1.0)]
    again = read_config(named("accuracy").model_dump(mode="json"), (), "vlm")
    assert [r.name for r in again.rewards] == ["accuracy", "answer_number"], "a run that is read again has it once"


def test_what_most_say_becomes_what_all_say(tmp_path):
    """No reward knows a truth. "ae" is said more often than "cd", and 16 votes say so to 8 answers."""
    prompts = hinted_prompts(2)
    pairs = [(p, text) for p in prompts for text in ("ae", "cd")]
    policy = taught(pairs, weights=[0.7, 0.3] * 2, steps=30)

    def score(outputs, prompts):
        nothing = torch.full((len(outputs),), float("nan"))
        numbers = [float(1 + ["ae", "cd"].index(o)) if o in ("ae", "cd") else 0.0 for o in outputs]
        reward = torch.tensor([float(n > 0) for n in numbers])
        return Scores({"answered": reward}, reward, nothing, columns={"answer": numbers})

    def chance():
        return policy.written(prompts, ["ae"] * 2).old_log_probs.sum(1).exp().mean().item()

    before, recipe = chance(), load_recipe("ttrv")
    rollout = [{**s, "count": 16} if isinstance(s, dict) else s for s in recipe.rollout]
    trainer = Trainer(
        policy, Objective.of(recipe.objective), prompts, score,
        TrainingConfig(steps=4, prompts_per_step=2, group_size=8, learning_rate=1e-3), tmp_path, rollout=rollout,
    )  # fmt: skip
    batch = trainer.collector.collect(0).batch
    assert len(batch) == 32 and batch.trained.sum() == 16
    for group in (0, 1):
        voted = batch.index((batch.group == group) & (batch["answer"] > 0))
        for number in voted["answer"].unique():
            same = voted["answer"] == number
            others = voted.reward[~same]
            assert len(voted.reward[same].unique()) == 1, "one value an answer"
            assert not len(others) or voted.reward[same][0] - others[0] == pytest.approx(
                (same.sum() - len(others)) / 16
            )
    trainer.train()
    assert chance() > before + 0.1
