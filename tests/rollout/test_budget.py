"""Where more rollouts go, and where they begin: DARS, CURE, TreePO."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.credit.inherited import own_actions
from mmrl.rollout.cure import critical
from mmrl.rollout.dars import Dars, extra
from mmrl.rollout.treepo import TreePO, spread
from mmrl.stages import Bound
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.plans import rows, step
from tests.rollout.test_acting import trainer_of
from tests.training.tiny import make_policy, make_prompts, score_vowels


class TestDars:
    @pytest.mark.parametrize(
        ("rate", "equal", "hard", "equal_std", "hard_std"),
        [(0, 24, 56, 9, 23), (0.125, 11, 24, 5, 14), (0.25, 3, 8, 2, 6), (0.375, 1, 3, 1, 3), (0.5, 0, 0, 0, 0)],
    )
    def test_worked_extras_of_eight(self, rate, equal, hard, equal_std, hard_std):
        assert extra(rate, 8, 32) == equal and extra(rate, 8, 64, "hardness") == hard
        assert extra(rate, 8, 32, std=True) == equal_std and extra(rate, 8, 64, "hardness", std=True) == hard_std

    def test_hard_groups_are_asked_once(self):
        batch, dars = rows([0] * 8 + [1, 1, 0, 0, 0, 0, 0, 0] + [1] * 8, [0] * 8 + [1] * 8 + [2] * 8), Dars()
        assert [(a.group, a.count) for a in dars.join(batch, step(1, size=8)).ask] == [(0, 24), (1, 3)]
        assert dars.join(batch, step(2, size=8)) is None
        with pytest.raises(ConfigError, match=r"most=4 is less than training\.group_size=8"):
            Dars(most=4).join(batch, step(1, size=8))


class TestCure:
    def test_places_are_the_most_uncertain_ones_and_never_the_first(self):
        entropy, mask = torch.tensor([9.0, 1, 5, 3, 8]), torch.tensor([True, True, True, True, False])
        draws = {critical(entropy, mask, 2, torch.Generator().manual_seed(seed)) for seed in range(20)}
        assert draws == {2, 3}
        assert critical(entropy, torch.tensor([True] + [False] * 4), 2, torch.Generator()) == 0

    def test_branches_share_their_beginning_and_learn_from_the_rest(self, tmp_path):
        settings = TrainingConfig(steps=1, prompts_per_step=2, group_size=2, learning_rate=1e-3)
        trainer = Trainer(
            make_policy(), Objective.of({"credit": ["own_actions"]}), make_prompts(4), score_vowels, settings, tmp_path,
            rollout=[{"name": "cure", "again": 2, "top": 2}],
        )  # fmt: skip
        batch = trainer.collector.collect(0).batch
        assert len(batch) == 2 * 2 * 3
        advantage, loss_mask = own_actions(torch.ones_like(batch.old_log_probs), batch)
        first = batch.member < 2
        assert torch.equal(loss_mask[first], batch.mask[first])
        inherited = (batch.mask & ~loss_mask)[~first]
        assert inherited.any() and torch.equal(advantage > 0, loss_mask)
        for row in (~first).nonzero().squeeze(1).tolist():
            kept = int((batch.mask & ~loss_mask)[row].sum())
            mother = (batch.group == batch.group[row]) & (batch.member == batch.owner[row, 0])
            assert kept == 0 or torch.equal(batch.actions[row, :kept], batch.actions[mother][0, :kept])
        trainer.train()


class TestTreePO:
    def test_a_budget_is_spread_evenly(self):
        assert spread(3, 2, 1) == [1, 1] and spread(3, 2, 2) == [2, 1] and spread(1, 3, 1) == [1, 0, 0]
        assert spread(2, 0, 1) == []

    def test_two_roots_and_four_leaves_of_a_width_of_four(self):
        tree, long = TreePO(segment=2, first=2), {"length": torch.tensor([9, 9])}
        assert [a.count for a in tree.ask(step(0, size=4, prompts=1)).ask] == [2]
        plan = tree.join(rows([0, 0], [0, 0], **long), step(1, size=4))
        assert [(a.count, a.start.member, a.start.action) for a in plan.ask] == [(1, 0, 2), (1, 1, 2)]
        assert tree.join(rows([0] * 4, [0] * 4, length=torch.tensor([9] * 4)), step(2, size=4)) is None

    def test_what_ended_early_leaves_its_budget_to_random_segments(self):
        tree = TreePO(segment=2, first=2)
        tree.ask(step(0, size=5, prompts=1))
        batch = rows([0, 0], [0, 0], length=torch.tensor([2, 2]))
        plan = tree.join(batch, step(1, size=5))
        assert sum(a.count for a in plan.ask) == 3 and all(a.start is None for a in plan.ask), "no inner segment"

    def test_exactly_as_many_leaves_as_asked_for_and_shared_segments_are_equal(self, tmp_path):
        strategy = Bound.of("rollout", {"name": "treepo", "segment": 1, "first": 2})
        batch = trainer_of(tmp_path, strategy, group_size=6).collector.collect(0).batch
        assert (torch.bincount(batch.group) == 6).all()
        seen: dict[tuple[int, int, int], list[int]] = {}
        for row in range(len(batch)):
            for t in range(int(batch.length[row])):
                state = (int(batch.group[row]), t, int(batch.owner[row, t]))
                assert (
                    seen.setdefault(state, batch.actions[row, : t + 1].tolist()) == batch.actions[row, : t + 1].tolist()
                )
        assert len(seen) < int(batch.mask.sum()), "some tokens stand in several leaves"
