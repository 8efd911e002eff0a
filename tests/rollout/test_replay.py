"""Groups that are kept and shown again: what is kept, who is drawn, which ratio, and that a resume goes on."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.record import SOURCES
from mmrl.rollout.replay import Kept, Replay, effective_size
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.plans import rows, step
from tests.training.tiny import make_policy, make_prompts, score_vowels


def kept(row: int, score: float, at: int = 0) -> Kept:
    return Kept(row, at, score, [[25, 26]], [[-1.0, -2.0]])


def score_half(outputs, prompts):
    """A signal for even prompts; odd ones are always worth the same."""
    scores = score_vowels(outputs, prompts)
    scores.reward[torch.tensor([int(p.id[1:]) % 2 == 1 for p in prompts])] = 0.5
    return scores


def trainer_of(tmp_path, steps: int = 4, **options) -> Trainer:
    settings = {"steps": steps, "prompts_per_step": 2, "group_size": 3, "learning_rate": 1e-3, "save_every": 2}
    return Trainer(
        make_policy(), Objective.of({}), make_prompts(2), score_half, TrainingConfig(**settings), tmp_path,
        rollout=[{"name": "replay", **options}],
    )  # fmt: skip


class TestBuffer:
    def test_effective_sizes(self):
        assert effective_size(torch.ones(4)) == pytest.approx(4)
        assert effective_size(torch.tensor([10.0, 1, 1, 1])) == pytest.approx(1.640777, abs=1e-6)

    def test_the_groups_of_the_largest_spread_are_kept(self):
        replay = Replay(size=2)
        now = step(size=2)
        now.groups = [7, 8, 9, 10]
        replay.observe(
            rows([0, 1, 0, 0.2, 0, 0.6, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3], actions=torch.zeros(8, 1).long()), now
        )
        assert [(k.row, round(k.score, 6)) for k in replay.kept] == [(7, 0.5), (9, 0.3)]

    def test_drawn_in_proportion_to_worth_and_never_twice(self):
        replay, first = Replay(), []
        replay.kept = [kept(1, 3.0), kept(2, 2.0)]
        for number in range(400):
            now = step(1)
            now.key = now.key.at(step=number)
            drawn = replay._drawn(2, now)
            assert len({k.row for k in drawn}) == 2
            first.append(drawn[0].row)
        assert first.count(1) / 400 == pytest.approx(0.6, abs=0.08)

    def test_old_groups_are_forgotten_and_flat_ones_replaced_one_for_one(self):
        replay = Replay(age=3)
        replay.kept = [kept(1, 1.0, at=0), kept(2, 1.0, at=2), kept(3, 1.0, at=2)]
        now = step(1)
        now.number, now.groups = 5, [0, 1]
        plan = replay.join(rows([1, 1, 0, 1], [0, 0, 1, 1]), now)
        assert [g.index in (2, 3) for g in plan.given] == [True] and plan.given[0].columns == {"age": 3.0}
        assert [k.row for k in replay.kept] == [2, 3]

    def test_hinted_and_given_rows_are_not_kept(self):
        now, replay = step(size=2), Replay()
        now.groups = [7, 8]
        batch = rows([0, 1, 0, 1], [0, 0, 1, 1], helped=torch.tensor([True, False, False, True]))
        replay.observe(batch, now)
        assert replay.kept == []

    @pytest.mark.parametrize("options", [{"size": 0}, {"age": 0}, {"least": 2}])
    def test_options_that_cannot_be(self, options):
        with pytest.raises(ConfigError, match="rollout 'replay'"):
            Replay(**options)


class TestReplayOnAModel:
    def test_the_ratio_is_to_the_policy_that_sampled(self, tmp_path):
        trainer = trainer_of(tmp_path)
        first = trainer.collector.collect(0)
        (entry,) = trainer.strategies.strategies[0].kept
        with torch.no_grad():
            for parameter in trainer.policy.module.parameters():
                parameter.mul_(1.05)
        second = trainer.collector.collect(1).batch
        replayed = second.source == SOURCES.index("replay")
        assert replayed.sum() == 3 and (second["age"][replayed] == 1).all()
        before = first.batch.group == first.indices.index(entry.row)
        for name, column in (("actions", second.actions), ("old_log_probs", second["behaviour_log_probs"])):
            width = int(first.batch.length[before].max())
            assert torch.equal(column[replayed][:, :width], getattr(first.batch, name)[before][:, :width]), name
        apart = (second.old_log_probs - second["behaviour_log_probs"])[replayed].abs().sum()
        assert apart > 1e-3, "this policy's own probability has moved"

    def test_groups_the_policy_left_behind_are_forgotten(self, tmp_path):
        trainer = trainer_of(tmp_path, least=1.0)
        trainer.collector.collect(0)
        with torch.no_grad():
            for parameter in trainer.policy.module.parameters():
                parameter.mul_(1.5)
        batch = trainer.collector.collect(1).batch
        replayed = batch.source == SOURCES.index("replay")
        assert replayed.any() and not batch.trained[replayed].any()

    def test_a_resumed_run_is_the_run_that_went_on(self, tmp_path):
        whole = trainer_of(tmp_path / "whole")
        whole.train()
        trainer_of(tmp_path / "part", steps=2).train()
        resumed = trainer_of(tmp_path / "part")
        resumed.train(tmp_path / "part" / "checkpoints" / "step-000002")
        assert json.dumps(whole.strategies.state_dict()) == json.dumps(resumed.strategies.state_dict())
        for name, weight in whole.policy.trainable_state().items():
            assert torch.equal(weight, resumed.policy.trainable_state()[name]), name
