"""Reward shaping: the specs' worked numbers."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.shaping.gates import connected_share, rubric_choice
from mmrl.objective.shaping.hints import hint_reward
from mmrl.objective.shaping.length import length_budget, length_score
from mmrl.objective.shaping.outcomes import false_negative_rate
from mmrl.record import Batch, task_number
from mmrl.stages import Bound


def batch_of(reward, **fields) -> Batch:
    reward = torch.tensor(reward, dtype=torch.float64)
    for name in ("length", "group"):
        if name in fields:
            fields[name] = torch.tensor(fields[name])
    fields.setdefault("mask", torch.ones(len(reward), 1, dtype=torch.bool))
    fields.setdefault("old_log_probs", torch.zeros(fields["mask"].shape, dtype=torch.float64))
    return Batch(reward=reward, **fields)


def test_soft_overlong_penalties():
    batch = batch_of([0.0] * 4, length=[10000, 17408, 20480, 20481])
    shaped = Bound.of("shaping", {"name": "soft_overlong", "max_length": 20480})(batch)
    torch.testing.assert_close(shaped, torch.tensor([0, -0.25, -1, -1]).double())


def test_soft_overlong_takes_the_policys_limit_or_says_it_has_none():
    limited = batch_of([1.0, 1.0], length=[8, 10], max_length=10)
    assert Bound.of("shaping", "soft_overlong")(limited).tolist() == [1.0, 0.0]
    with pytest.warns(UserWarning, match="max_length"):
        assert Bound.of("shaping", "soft_overlong")(batch_of([1.0], length=[8])).tolist() == [1.0]


def shape(name: str, batch: Batch, **parameters) -> torch.Tensor:
    return Bound.of("shaping", {"name": name, **parameters})(batch)


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


NAN = float("nan")


class TestLengthWhenSolved:
    """GRPO-lambda."""

    def batch(self, groups: int = 3):
        # group 0 is right three times of three, the others once of three
        reward = [1.0, 1, 1] + [1.0, 0, 0] * (groups - 1)
        group = [g for g in range(groups) for _ in range(3)]
        length = [100, 200, 300] + [50, 60, 70] * (groups - 1)
        return batch_of(reward, group=group, length=length, success=torch.tensor(reward).double())

    def test_worked_numbers(self):
        close(shape("grpo_lambda", self.batch())[:3], [0.954579, 0.9, 0.845421])
        close(shape("grpo_lambda", self.batch(), alpha=0.6)[:3], [0.863738, 0.7, 0.536262])

    @pytest.mark.parametrize(("groups", "chosen"), [(10, 2), (3, 1)])
    def test_the_best_share_of_prompts_is_counted_up_to_at_least_one(self, groups, chosen):
        batch = self.batch(groups)
        changed = (shape("grpo_lambda", batch) != batch.reward).view(groups, 3).any(1)
        assert changed.sum() == chosen and changed[0]

    def test_wrong_answers_and_other_prompts_keep_their_reward(self):
        batch = self.batch()
        close(shape("grpo_lambda", batch)[3:], batch.reward[3:].tolist())
        close(shape("grpo_lambda", batch, threshold=0.3)[3:6], [0.9, 0, 0])


class TestLengthBudget:
    def test_scores(self):
        length = torch.tensor([0, 50, 100, 150, 250]).double()
        close(length_score(length, 100), [0, 0.5, 1, 0.5, 0])
        close(length_score(length, 100, "flat"), [1, 1, 1, 0.5, 0])

    def test_budgets(self):
        budgets = [length_budget(100 * k, gamma=0.8, decay="exponential") for k in range(4)]
        assert budgets == pytest.approx([256, 204.8, 163.84, 131.072])
        assert length_budget(99, gamma=0.8, decay="exponential") == 256
        assert length_budget(600, decay="exponential") == pytest.approx(87, abs=1)
        assert length_budget(10**6, decay="linear") == 1

    def test_reward(self):
        batch = batch_of([1.0, 0.0], length=[128, 512], step=0)
        close(shape("train_long_think_short", batch), [1.15, 0.0])
        with pytest.raises(ConfigError, match="triangle"):
            shape("train_long_think_short", batch, form="triangular")


def test_task_length_bands():
    tasks = torch.tensor([task_number("reason")] * 3 + [task_number("look")] * 2 + [task_number("other")])
    batch = batch_of([0.0] * 6, length=[50, 150, 300, 5, 15, 15], task=tasks)
    close(
        shape("task_length", batch, bands={"reason": [100, 200], "look": [0, 10]}, weight=1.0),
        [0.5, 1, 0.5, 1, 0.5, 0],
    )


class TestNoisyVerifier:
    def test_worked_numbers(self):
        rates = {"false_positive": 0.1, "false_negative": 0.2}
        corrected = shape("noisy_verifiers", batch_of([1.0, 0.0]), **rates)
        close(corrected, [1.285714, -0.142857])
        right, wrong = 0.8 * corrected[0] + 0.2 * corrected[1], 0.1 * corrected[0] + 0.9 * corrected[1]
        close(torch.stack([right, wrong]), [1.0, 0.0])
        weight = shape("noisy_verifiers", batch_of([1.0, 0.0]), mode="forward", **rates)
        close(torch.stack([0.8 * weight[0] + 0.2 * weight[1], 0.1 * weight[0] + 0.9 * weight[1]]), [0.0, -0.7])

    def test_a_useless_verifier_is_refused_and_rates_may_differ_by_row(self):
        with pytest.raises(ConfigError, match="says nothing"):
            shape("noisy_verifiers", batch_of([1.0]), false_positive=0.6, false_negative=0.5)
        rates = {"fn": torch.tensor([0.0, 0.4]).double()}
        batch = batch_of([1.0, 1.0], components=rates)
        close(shape("noisy_verifiers", batch, false_positive=0.1, false_negative="fn"), [1.0, 1.8])

    def test_uniform_rates_change_nothing_under_grpo(self):
        batch = batch_of([1.0, 0.0, 0.0, 1.0], group=[0, 0, 0, 0])
        corrected = replace(batch, reward=shape("noisy_verifiers", batch))
        grpo = Bound.of("advantage", {"name": "grpo", "eps": 0.0})
        close(grpo(corrected), grpo(batch).tolist())

    def test_running_rate(self):
        assert false_negative_rate(0.0, 0.25, 30, 40, momentum=0.0) == pytest.approx(10 / 40)
        assert false_negative_rate(0.3, 0.0, 0, 0) == pytest.approx(0.27)


class TestFormats:
    labels = torch.tensor([0.0, 0, 1, 1, 1, 1, 1, 1]).double()

    def scale(self, step, labels=None):
        labels = self.labels if labels is None else labels
        batch = batch_of([1.0] * 8, group=[0] * 8, step=step, steps=101, components={"format_label": labels})
        return shape("arm_ada_grpo", batch)

    def test_worked_numbers(self):
        assert [self.scale(step)[0].item() for step in (0, 50, 100)] == pytest.approx([4, 2.5, 1])
        close(self.scale(0, torch.zeros(8).double()), [1.0] * 8)

    def test_an_answer_without_format_keeps_its_reward(self):
        labels = self.labels.clone()
        labels[0] = NAN
        assert self.scale(0, labels)[:2].tolist() == [1, 8]


def test_serial_exits():
    success = [0.0, 1, 1, 0, 1]
    order = [4, 2, 0, 1, 3]
    batch = batch_of(success, group=[0] * 5, member=torch.arange(5), success=torch.tensor(success).double())
    reward = shape("s_grpo", batch)
    close(reward, [0, 1, 0.5, 0, 0.25])
    close(Bound.of("advantage", "dr_grpo")(replace(batch, reward=reward)), [-0.35, 0.65, 0.15, -0.35, -0.1])
    close(shape("s_grpo", batch.index(torch.tensor(order))), reward[order].tolist())
    two = batch_of([1.0, 1, 1, 1], group=[0, 0, 1, 1], success=torch.ones(4).double())
    close(shape("s_grpo", two), [1, 0.5, 1, 0.5])


class TestUnlikeliness:
    old = torch.tensor([[-0.5], [-2.0], [-1.0], [-0.1]]).double()

    def test_worked_numbers(self):
        batch = batch_of([1.0, 1, 0, 1], group=[0] * 4, old_log_probs=self.old)
        shaped = shape("unlikeliness_reward", batch)
        close(shaped, [0.875, 1, 0, 0.8125])
        close(
            Bound.of("advantage", "grpo")(replace(batch, reward=shaped)),
            [0.446772, 0.721709, -1.477785, 0.309304],
            5e-6,
        )

    def test_groups_of_equal_rewards_get_no_signal_unless_asked(self):
        batch = batch_of([1.0] * 4, group=[0] * 4, old_log_probs=self.old)
        close(shape("unlikeliness_reward", batch), [1.0] * 4)
        assert shape("unlikeliness_reward", batch, skip_uniform=False).std() > 0


class TestDiversity:
    ids = torch.tensor([[1, 2, 3], [1, 2, 3], [7, 8, 9], [4, 5, 6]])

    def test_only_right_rollouts_gain_and_stay_above_wrong_ones(self):
        success = [1.0, 1, 1, 0]
        batch = batch_of(
            success, group=[0] * 4, success=torch.tensor(success).double(), actions=self.ids,
            mask=torch.ones(4, 3, dtype=torch.bool),
        )  # fmt: skip
        shaped = shape("dsdr", batch)
        close(shaped, [1.025, 1.025, 1.05, 0.0])
        assert shape("dsdr", batch, weight=0.9)[:3].min() > shaped[3]

    def test_one_right_rollout_gains_nothing_and_a_component_may_measure_diversity(self):
        success = [1.0, 0, 0, 0]
        batch = batch_of(
            success, group=[0] * 4, success=torch.tensor(success).double(), actions=self.ids,
            mask=torch.ones(4, 3, dtype=torch.bool), components={"spread": torch.tensor([7.0, 1, 1, 1]).double()},
        )  # fmt: skip
        close(shape("dsdr", batch), success)
        close(shape("dsdr", batch, diversity="spread"), [1.1, 0, 0, 0])


class TestGates:
    def components(self, **values):
        return batch_of([0.0], components={k: torch.tensor([v]).double() for k, v in values.items()})

    def test_searchllm(self):
        batch = self.components(safe=0.9, grounded=0.3, helpful=0.7)
        gates = {"safe": 0.5, "grounded": 0.5}
        close(shape("searchllm", batch, gates=gates, objectives={"helpful": 1.0}), [-0.2])
        open_gate = self.components(safe=0.5, grounded=0.5, helpful=0.0)
        assert shape("searchllm", open_gate, gates=gates, objectives={"helpful": 1.0}) > -0.2
        soft = shape("searchllm", self.components(safe=9.0, grounded=9.0, helpful=0.7), gates=gates, sharpness=20.0)
        close(soft, [0.0])

    def test_rubric_anchors(self):
        batch = self.components(a=1.0, b=0.5, c=0.0)
        weights = {"a": 2, "b": 1, "c": 1}
        close(shape("rubric_anchors", batch, weights=weights), [0.625])
        close(shape("rubric_anchors", batch, weights=weights, vetoes={"c": 0.5}), [0.0])
        close(shape("rubric_anchors", batch, weights=weights, caps={"b": 0.5}), [0.75])
        close(shape("rubric_anchors", batch, weights={"a": 1}, pairs={"a*b": 1}), [0.75])

    def test_carr(self):
        quality = {"rubric": torch.tensor([0.5, 0.25, 0.8]).double()}
        batch = batch_of([1.0, 1, 0], group=[0] * 3, components=quality)
        close(shape("carr_c_grpo", batch), [0.85, 0.775, 0])
        close(shape("carr_c_grpo", batch, normalize=True), [0.8875, 0.79375, 0])
        items = [{"paris", "seine"}, {"seine", "river"}, {"rome"}]
        assert connected_share(items, "paris") == pytest.approx(2 / 3)
        assert connected_share(items, "rome") == pytest.approx(1 / 3) and connected_share([], "x") == 0

    def test_progressive_stages(self):
        stages = [
            {"component": "parse"},
            {"component": "form", "threshold": 0.5},
            {"component": "quality", "width": 2.0},
        ]
        close(shape("progressive_stages", self.components(parse=1.0, form=0.6, quality=0.5), stages=stages), [2.6])
        close(shape("progressive_stages", self.components(parse=1.0, form=0.4, quality=0.5), stages=stages), [1.4])
        close(shape("progressive_stages", self.components(parse=0.9, form=1.0, quality=1.0), stages=stages), [0.9])

    def test_missing_components_and_parameters_are_named(self):
        with pytest.raises(ConfigError, match="did you mean 'safe'"):
            shape("searchllm", self.components(safe=1.0), gates={"save": 0.5})
        for name, wanted in (("searchllm", "gates"), ("rubric_anchors", "weights"), ("progressive_stages", "stages")):
            with pytest.raises(ConfigError, match=wanted):
                shape(name, self.components(safe=1.0))

    def test_rubric_choice(self):
        assert rubric_choice([0.5, -0.1, -0.6, 0.1], -0.2) == (0, 2)
        assert rubric_choice([0.5, 0.4], -0.2) is None


class TestHints:
    def reward(self, share, reliance, **parameters):
        success = torch.tensor([1.0] * round(8 * share) + [0.0] * round(8 * (1 - share)))
        return hint_reward(success, torch.full((8,), reliance), torch.zeros(8), **parameters)

    def test_worked_numbers(self):
        assert self.reward(0.5, 0.0) == pytest.approx(0.992188, abs=1e-6)
        assert self.reward(0.5, -0.3, form="variance") == pytest.approx(0.091970, abs=1e-6)
        assert self.reward(1.0, 0.0) == 0 and self.reward(0.0, 0.0) == 0
        assert self.reward(0.5, 0.0, without=0.995) == 0
        assert self.reward(0.5, 3.0) == self.reward(0.5, 0.0), "less reliance than none is not rewarded"


class TestLabelRow:
    """ViSurf: the ground truth as a member of the group."""

    def advantage(self, rewards):
        expert = torch.tensor([False] * 4 + [True])
        batch = batch_of([*rewards, 3.0], group=[0] * 5, columns={"expert": expert})
        batch = replace(batch, reward=shape("visurf_label", batch))
        return Bound.of("advantage", "grpo")(batch)

    def test_worked_numbers(self):
        close(self.advantage([0.0, 1, 1, 0]), [-0.8165, 0, 0, -0.8165, 1.6330], atol=1e-4)
        assert self.advantage([3.0, 1, 3, 1])[4].item() == pytest.approx(0)


def test_a_batch_that_brings_its_advantage_is_not_shaped_or_selected():
    objective = Objective.of({"shaping": ["soft_overlong"], "group": ["dynamic_sampling"]})
    batch = batch_of([1.0, 1.0], group=[0, 0], advantage=torch.tensor([1.0, -1.0]).double())
    prepared, weights = objective.prepare(replace(batch, reward=None))
    close(prepared.advantage[:, 0], [1.0, -1.0])
    assert weights.sum() == pytest.approx(1)
