"""Robust baselines: the specs' worked numbers, degenerate groups, invariances."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.advantages.risk import mixed_value_at_risk
from mmrl.record import Batch
from mmrl.stages import Bound

NAN = float("nan")


def batch_of(*groups: list[float], **fields) -> Batch:
    rewards = torch.tensor([r for g in groups for r in g], dtype=torch.float64)
    group = torch.tensor([i for i, g in enumerate(groups) for _ in g])
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = torch.tensor(value, dtype=torch.float64 if name == "success" else torch.long)
    return Batch(
        mask=torch.ones(len(rewards), 1, dtype=torch.bool), old_log_probs=torch.zeros(len(rewards), 1).double(),
        group=group, reward=rewards, **fields,
    )  # fmt: skip


def advantage(name: str, *groups: list[float], batch: Batch | None = None, **parameters) -> torch.Tensor:
    return Bound.of("advantage", {"name": name, **parameters})(batch or batch_of(*groups))


def close(actual: torch.Tensor, expected: list[float], atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


class TestMedianCentred:
    def test_worked_numbers(self):
        close(advantage("mc_grpo", [0.9, 0.1, 0.4, 0.5, 0.2]), [3.10945, -1.86567, 0, 0.62189, -1.24378])
        close(advantage("mc_grpo", [0.1, 0.4, 0.5, 0.9, 1]), [-1.246883, -0.311721, 0, 1.246883, 1.558603])

    def test_binary_rewards_explode_in_the_paper_exact_mode_only(self):
        close(advantage("mc_grpo", [1, 0, 0], fallback=False), [3000, 0, 0])
        close(advantage("mc_grpo", [0, 1, 0, 0, 0], fallback=False), [0, 5000, 0, 0, 0])
        assert advantage("mc_grpo", [1, 0, 0]).max() < 6

    def test_equal_rewards_and_unscored_rows_give_zero(self):
        close(advantage("mc_grpo", [0.3, 0.3, 0.3]), [0, 0, 0])
        close(advantage("mc_grpo", [0.9, 0.1, NAN, 0.4, 0.5, 0.2]), [3.10945, -1.86567, 0, 0, 0.62189, -1.24378])

    def test_one_outlier_does_not_flip_the_sign_of_the_others(self):
        near, far = advantage("mc_grpo", [0, 1, 2, 3, 4]), advantage("mc_grpo", [0, 1, 2, 3, 400])
        assert torch.equal(near.sign(), far.sign())
        grpo = Bound.of("advantage", "grpo")
        flipped = grpo(batch_of([0, 1, 2, 3, 4])).sign() != grpo(batch_of([0, 1, 2, 3, 400])).sign()
        assert flipped.any(), "negative control: the mean does flip them"

    def test_the_pivot_leaves_the_loss_and_stays_in_the_baseline(self):
        batch = batch_of([0.9, 0.1, 0.4, 0.5, 0.2], [1, 1, 0])
        selection = Bound.of("group", "mc_grpo_pivot")(batch)
        assert (~selection.trained).nonzero().squeeze(1).tolist() == [2, 5], "median; lowest member among ties"
        assert selection.counted is None


class TestNegativeEnhanced:
    def test_worked_numbers(self):
        close(advantage("ngrpo", [0] * 8), [-0.333332] * 8)
        close(advantage("ngrpo", [1] * 4 + [0] * 4), [0.843272] * 4 + [-1.054091] * 4)
        close(advantage("ngrpo", [1] * 8), [0] * 8)
        close(advantage("ngrpo", [0] * 4), [-0.447213] * 4)
        close(advantage("ngrpo", [1, 0, 0, 0]), [1.095443, -0.730295, -0.730295, -0.730295])

    def test_sum_is_negative_unless_all_are_right_and_a_group_of_one_trains(self):
        assert advantage("ngrpo", [0.2, 0.9, 0.4]).sum() < 0
        objective = Objective.of({"advantage": "ngrpo"})
        prepared, _ = objective.prepare(batch_of([0.0]))
        assert prepared.trained.all() and prepared.advantage.item() < -0.5


class TestGaussian:
    def one(self, rewards, **parameters):
        return advantage("openvlthinkerv2_g2rpo", rewards, pool="group", **parameters)

    def test_worked_numbers(self):
        close(self.one([1, 2, 3, 4]), [-1.150349, -0.318639, 0.318639, 1.150349])
        close(self.one([0, 1, 1, 0]), [-0.734494, 0.734494, 0.734494, -0.734494])
        close(self.one([0, 0, 0, 1]), [-0.383450, -0.383450, -0.383450, 1.150349])
        close(self.one([0.1, 0.2, 1000, 0.5]), [-1.150349, -0.318639, 1.150349, 0.318639])
        close(self.one([7.0]), [0])

    def test_any_increasing_transform_of_the_rewards_changes_nothing(self):
        rewards = torch.rand(9, generator=torch.Generator().manual_seed(0)).double()
        close(self.one(rewards.exp().tolist()), self.one(rewards.tolist()).tolist())

    def test_second_step_over_the_task(self):
        groups = ([0.0, 0, 0, 1], [1.0, 1, 1, 1])
        released = advantage("openvlthinkerv2_g2rpo", *groups, keep_dead_zero=False)
        close(released, [-0.970, -0.970, -0.970, 1.534, 0.344, 0.344, 0.344, 0.344], atol=1e-3)
        assert (advantage("openvlthinkerv2_g2rpo", *groups)[4:] == 0).all()

    def test_ties_of_different_groups_and_tasks(self):
        batch = batch_of([0, 0, 1, 0], [0, 1, 0, 0], [5, 6, 7, 8], task=[0] * 8 + [1] * 4)
        scores = advantage("openvlthinkerv2_g2rpo", batch=batch)
        assert scores[2] == scores[5]
        close(scores[8:], [-1.150349, -0.318639, 0.318639, 1.150349])

    def test_unit_variance_and_components(self):
        scaled = self.one([1, 2, 3, 4], unit_variance=True)
        assert (scaled**2).mean().item() == pytest.approx(1)
        parts = {"a": torch.tensor([0.0, 1, 0, 1]).double(), "b": torch.tensor([1.0, 2, 3, 4]).double()}
        batch = batch_of([0, 0, 0, 0], components=parts)
        both = advantage("openvlthinkerv2_g2rpo", batch=batch, pool="group", per_component=True)
        close(both, (self.one([0, 1, 0, 1]) + self.one([1, 2, 3, 4])).tolist())


class TestNegativeReinforcement:
    def test_worked_numbers(self):
        batch = batch_of([1, 0, 1, 0], success=[1, 0, 1, 0])
        close(advantage("psr_nsr_w_reinforce", batch=batch), [0.1, -1, 0.1, -1])
        close(advantage("psr_nsr_w_reinforce", batch=batch, mode="psr"), [1, 0, 1, 0])
        close(advantage("psr_nsr_w_reinforce", batch=batch, mode="nsr"), [0, -1, 0, -1])

    def test_nsr_averages_over_the_rows_that_are_left(self):
        objective = Objective.of(
            {"group": ["drop_zero_advantage"], "advantage": {"name": "psr_nsr_w_reinforce", "mode": "nsr"}}
        )
        _, weights = objective.prepare(batch_of([1, 0, 1, 0], success=[1, 0, 1, 0]))
        assert weights.squeeze(1).tolist() == [0, 0.5, 0, 0.5]

    def test_without_a_verifier_it_says_so(self):
        with pytest.raises(ConfigError, match="success"):
            advantage("psr_nsr_w_reinforce", [1, 0])


class TestPairing:
    hard, easy = [1.0] + [0.0] * 7, [1.0] * 7 + [0.0]

    def test_worked_numbers(self):
        batch = batch_of(self.hard, self.easy, success=self.hard + self.easy)
        alone = advantage("pairing_wgrpo", batch=batch, scope="prompt")
        close(alone[[0, 1, 8, 15]], [2.645747, -0.377964, 0.377964, -2.645747])
        pair = advantage("pairing_wgrpo", batch=batch)
        close(pair[[0, 1, 8, 15]], [1.705606, -0.852803, 0.852803, -1.705606])

    def test_the_pair_may_come_in_either_order(self):
        batch = batch_of(self.easy, self.hard, success=self.easy + self.hard)
        close(advantage("pairing_wgrpo", batch=batch)[[8, 7]], [1.705606, -1.705606])


class TestRisk:
    def test_worked_numbers(self):
        scores = torch.tensor([0.0, 1, 2, 3, 4, 9]).double()
        low, high = torch.full_like(scores, 1), torch.full_like(scores, 4)
        close(
            mixed_value_at_risk(scores, low, high, 0.2, 0.9, 1.5),
            [-4.714268, -1.714283, -1.142856, -0.571428, 0, 0],
        )
        close(mixed_value_at_risk(scores[:3], low[:3], high[:3], 0.2, 0.8, 1.5), [-5, -2, -4 / 3], atol=1e-4)
        assert (mixed_value_at_risk(scores[1:], low[1:], high[1:], 0.2, 0.9, 1.5, False) >= 0).all()

    def batch(self):
        generator = torch.Generator().manual_seed(2)
        return batch_of(*[torch.rand(4, generator=generator).round().tolist() for _ in range(10)])

    def test_papers_take_one_rollout_of_each_prompt(self):
        batch = self.batch()
        values = advantage("riskpo", batch=batch, quantiles="batch", credit="uniform", bundle_std=False)
        assert (values <= 0).all(), "the natural baseline leaves negative reinforcement only"
        for bundle in (range(5), range(5, 10)):
            for k in range(4):
                rows = [4 * g + k for g in bundle]
                assert len(set(values[rows].tolist())) == 1

    def test_row_order_changes_nothing_and_ragged_rows_stay_out(self):
        batch = self.batch()
        order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
        close(advantage("riskpo", batch=batch.index(order)), advantage("riskpo", batch=batch)[order].tolist())
        ragged = batch_of([0, 1, 1], [1, 1], [0, 0])
        values = advantage("riskpo", batch=ragged, bundle=3, credit="uniform")
        assert values[2] == 0 and (values[:2] != 0).any()

    def test_quantiles_are_tracked_saved_and_loaded(self):
        bound = Bound.of("advantage", {"name": "riskpo", "bundle": 2})
        batch = batch_of([0, 1, 1, 0], [1, 1, 0, 0])
        bound(batch)
        first = dict(bound.state.tracked)
        assert first["0.5"] == pytest.approx(torch.quantile(torch.tensor([1.0, 2, 1, 0]), 0.5).item())
        bound(batch)
        assert bound.state.tracked["0.9"] == pytest.approx(first["0.9"] + 0.1 * (0.9 - 0.75))
        resumed = Bound.of("advantage", {"name": "riskpo", "bundle": 2})
        resumed.state.load_state_dict(bound.state.state_dict())
        torch.testing.assert_close(resumed(batch), bound(batch))

    def test_sum_mean_credit_shares_the_paper_by_distance_from_the_mean(self):
        values = advantage("riskpo", [1, 0], [1, 1], bundle=2, credit="sum_mean", quantiles="batch", bundle_std=False)
        paper = advantage("riskpo", [1, 0], [1, 1], bundle=2, credit="uniform", quantiles="batch", bundle_std=False)
        close(values[[0, 2]], [paper[0].item(), 0.0])

    def test_levels_are_checked(self):
        with pytest.raises(ConfigError, match=r"a=0\.9"):
            Bound.of("advantage", {"name": "riskpo", "a": 0.9, "b": 0.2})


def test_pass_at_k_rewards_the_lead_of_the_best():
    close(advantage("pass_at_k", [0.2, 1.0, 0.7], [1, 1, 0], [0.5]), [0, 0.3, 0, 0, 0, 0, 0])
