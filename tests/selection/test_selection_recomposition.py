"""Recomposition: widest subsets against brute force, priority and compensation steps, expert traces."""

from itertools import combinations

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.record import Batch
from mmrl.selection.recomposition import widest
from mmrl.stages import Bound


def batch_of(reward, **fields) -> Batch:
    reward = torch.tensor(reward, dtype=torch.float64)
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = torch.tensor(value)
    fields.setdefault("group", torch.zeros(len(reward), dtype=torch.long))
    columns = fields.pop("columns", {})
    return Batch(
        mask=torch.ones(len(reward), 1, dtype=torch.bool), old_log_probs=torch.zeros(len(reward), 1).double(),
        reward=reward, columns=columns, **fields,
    )  # fmt: skip


class TestWidest:
    @pytest.mark.parametrize("seed", range(10))
    def test_against_brute_force(self, seed):
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(8, generator=generator).double()
        if seed % 2:
            values = values.round(decimals=1)
        count = 2 + seed % 5
        best = max(values[list(c)].var(correction=0).item() for c in combinations(range(8), count))
        chosen = widest(values, count, torch.rand(8, generator=generator))
        assert chosen.sum() == count
        assert values[chosen].var(correction=0).item() == pytest.approx(best)

    def test_worked_example_is_balanced(self):
        values = torch.tensor([1.0] * 6 + [0.0] * 2).double()
        chosen = widest(values, 4, torch.arange(8.0))
        assert values[chosen].sort().values.tolist() == [0, 0, 1, 1]
        assert values[chosen].var(correction=0).item() == pytest.approx(0.25)

    def test_equal_values_keep_the_lowest_ties_and_more_than_there_are_keeps_all(self):
        ties = torch.tensor([0.5, 0.1, 0.9, 0.2])
        assert widest(torch.ones(4).double(), 2, ties).tolist() == [False, True, False, True]
        assert widest(torch.ones(4).double(), 9, ties).all()


class TestBestAndWorst:
    def trained(self, reward, keep=4, **fields):
        objective = Objective.of({"group": [{"name": "best_and_worst", "keep": keep}]})
        return objective.prepare(batch_of(reward, **fields))[0].trained.tolist()

    def test_worked_example(self):
        """Of [3, 1, 4, 1.5, 5, 9, 2, 6] the extremes are 6, 9 and 1, 1.5; the baseline keeps all eight."""
        reward = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0]
        assert self.trained(reward) == [False, True, False, True, False, True, False, True]
        whole = Objective.of({}).prepare(batch_of(reward))[0].advantage
        some = Objective.of({"group": [{"name": "best_and_worst", "keep": 4}]}).prepare(batch_of(reward))[0].advantage
        torch.testing.assert_close(whole, some)

    def test_ties_small_groups_and_lost_rows(self):
        nan = float("nan")
        assert sum(self.trained([1.0] * 8)) == 4 or not any(self.trained([1.0] * 8))
        assert self.trained([0.0, 1.0, 0.5], group=[0, 0, 0]) == [True, True, True]
        assert self.trained([0.0, nan, 0.4, 0.5, 0.6, 1.0], keep=2) == [True, False, False, False, False, True]

    def test_an_odd_number_is_refused(self):
        with pytest.raises(ConfigError, match="keep=3"):
            self.trained([0.0, 1.0], keep=3)


class TestDownSampling:
    def kept(self, step, **parameters):
        generator = torch.Generator().manual_seed(0)
        reward = torch.rand(16, generator=generator).tolist()
        objective = Objective.of({"group": [{"name": "d3s", "first": 0.25, "last": 0.75, **parameters}]})
        batch, weights = objective.prepare(
            batch_of(reward, group=[g for g in range(4) for _ in range(4)], step=step, steps=11)
        )
        return batch, weights

    def test_the_share_follows_the_schedule(self):
        assert [int(self.kept(step)[0].trained.sum()) for step in (0, 5, 10)] == [4, 8, 12]

    def test_advantages_come_from_all_rollouts_and_rows_that_leave_weigh_nothing(self):
        batch, weights = self.kept(0)
        grpo = Objective.of({}).prepare(batch_of(batch.reward.tolist(), group=batch.group))[0]
        torch.testing.assert_close(batch.advantage, grpo.advantage)
        assert (weights[~batch.trained] == 0).all() and weights.sum() == pytest.approx(1)

    def test_the_first_pass_leaves_something_of_each_group(self):
        batch, _ = self.kept(10, last=0.5)
        assert torch.unique(batch.group[batch.trained]).tolist() == [0, 1, 2, 3]


class TestRecomposition:
    success = [1.0] * 4 + [0.0] * 4

    def selection(self, compensation, step=0, **fields):
        objective = Objective.of({"group": [{"name": "rorecomp", "compensation": compensation}]})
        batch = batch_of(
            self.success, success=torch.tensor(self.success).double(), length=[1, 2, 3, 4, 5, 6, 7, 8], step=step,
            steps=101, **fields,
        )  # fmt: skip
        return objective.prepare(batch)[0]

    def test_worked_example(self):
        batch = self.selection(compensation=0.0)
        assert batch.length[batch.trained].tolist() == [1, 2, 7, 8]

    def test_the_rest_makes_a_further_step(self):
        batch = self.selection(compensation=1.0)
        assert batch.trained.all()
        assert batch.update.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]

    def test_compensation_is_annealed_and_keyed_by_the_step(self):
        early = sum(self.selection(1.0, step=s).trained.all().item() for s in range(20))
        late = sum(self.selection(1.0, step=s).trained.all().item() for s in range(81, 101))
        assert early > late

    def test_all_right_groups_stay_out(self):
        objective = Objective.of({"group": [{"name": "rorecomp", "compensation": 1.0}]})
        ones = batch_of([1.0, 1, 1, 0], group=[0, 0, 1, 1], success=torch.tensor([1.0, 1, 1, 0]).double())
        assert objective.prepare(ones)[0].trained.tolist() == [False, False, True, True]


class TestExpertTraces:
    def kept(self, success, likelihood=-1.0):
        expert = torch.tensor([False, False, False, False, True])
        batch = batch_of(success, success=torch.tensor(success).double(), columns={"expert": expert})
        batch.old_log_probs = torch.full((5, 1), likelihood).double()
        return Bound.of("group", "expert_filter")(batch).trained.tolist()

    def test_wrong_unlikely_and_unneeded_traces_leave(self):
        assert self.kept([0.0, 0, 1, 0, 1]) == [True] * 5
        assert self.kept([0.0, 0, 1, 0, 0]) == [True] * 4 + [False]
        assert self.kept([1.0, 1, 1, 0, 1]) == [True] * 4 + [False]
        assert self.kept([0.0, 0, 1, 0, 1], likelihood=-5.0) == [True] * 4 + [False]
