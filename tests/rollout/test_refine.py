"""Next-sequence groups: places where the policy is unsure, rows that go on from there, and what they are worth."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.credit.continuations import refine as credit
from mmrl.objective.shaping.continuations import refine as shaping
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.rollout.refine import Refine, entropy_positions
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import taught
from tests.rollout.plans import rows
from tests.training.tiny import make_prompts


def drawn(entropy, chunks, temperature, seed=0, width=1):
    generator = torch.Generator().manual_seed(seed)
    return entropy_positions(entropy, chunks, width, temperature, generator)


class TestPlaces:
    def test_one_in_each_part(self):
        for seed in range(20):
            places = drawn(torch.rand(41), 4, 1.0, seed)
            assert [(p - 1) // 10 for p in places] == [0, 1, 2, 3]

    def test_the_unsure_ones_are_preferred_and_equal_ones_are_not(self):
        sure = torch.zeros(21)
        sure[7] = sure[15] = 5.0
        assert all(drawn(sure, 2, 0.1, seed) == [7, 15] for seed in range(10))
        even = {drawn(torch.ones(21), 2, 1.0, seed)[0] for seed in range(60)}
        assert even == set(range(1, 11))

    def test_neighbours_count_where_it_is_smoothed(self):
        lone = torch.zeros(13)
        lone[3], lone[8], lone[9], lone[10] = 4.0, 3.0, 3.0, 3.0
        assert drawn(lone, 1, 0.01) == [3] and drawn(lone, 1, 0.01, width=3) == [9]

    def test_short_texts(self):
        assert drawn(torch.ones(3), 8, 1.0) == [1, 2] and drawn(torch.ones(1), 8, 1.0) == []
        with pytest.raises(ConfigError, match="chunks=0"):
            Refine(chunks=0)


def batch_of():
    """A text of six actions and two rows that begin at its third: one says it again, the other half of it."""
    mask = torch.ones(3, 6, dtype=torch.bool)
    actions = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 5, 9]])
    columns = {"expert": torch.tensor([1.0, 0.0, 0.0]), "begins": torch.tensor([0.0, 2.0, 2.0])}
    base = rows([0.0] * 3, [0] * 3, columns=columns)
    return replace(
        base, mask=mask, actions=actions, old_log_probs=torch.zeros(3, 6), length=None, owner=None, loss_mask=None
    )


def test_equal_continuations_are_worth_one():
    assert shaping(batch_of(), width=4).tolist() == [1, 1, 0.5]
    assert shaping(batch_of(), width=9).tolist() == [1, 1, 0.5], "no further than the text goes"


def test_only_what_was_compared_trains():
    advantage, mask = credit(torch.ones(3, 6), batch_of(), width=3, weight=0.2)
    inside = [0, 0, 1, 1, 1, 0]
    assert mask.int().tolist() == [[0] * 6, inside, inside]
    assert advantage[1].tolist() == pytest.approx([0.2 * x for x in inside])


def test_a_text_becomes_likelier_and_its_continuations_too(tmp_path):
    """The policy goes on with the text "aecdae" at times; no verifier says so: every reward is 0."""
    prompts = make_prompts(2)
    for prompt in prompts:
        prompt.columns["demonstrations"] = "aecde"
    policy = taught([(p, t) for p in prompts for t in ("aecde", "aeedc")], weights=[0.5] * 4, steps=24)

    def score(outputs, prompts):
        nothing = torch.zeros(len(outputs))
        return Scores({"none": nothing}, nothing, nothing.clone())

    def chance():
        return policy.evaluate(policy.written(prompts, ["aecde"] * 2), ()).log_probs.sum(1).mean().item()

    recipe, before = load_recipe("refine"), chance()
    objective = {**recipe.objective, "regularizers": []}
    trainer = Trainer(
        policy, Objective.of(objective), prompts, score,
        TrainingConfig(steps=6, prompts_per_step=2, group_size=4, learning_rate=3e-4), tmp_path,
        rollout=[{"name": "refine", "chunks": 1, "count": 8, "width": 3}],
    )  # fmt: skip
    found = trainer.collector.collect(0)
    begun = found.batch["begins"] > 0
    assert begun.sum() == 2 * 8 and not found.batch.counted[~begun].any()
    assert found.batch.reward[begun].std() > 0, "some go on as the text does"
    trainer.train()
    assert chance() > before, "what the text says next became likelier, without its likelihood in the loss"
