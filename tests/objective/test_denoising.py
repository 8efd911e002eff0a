"""Stage functions of denoising steps: worked numbers, limits, and recipes composed on plain tensors."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.objective.advantages.denoising import densegrpo, tempflow_grpo, vgpo
from mmrl.objective.credit.denoising import inverse_step_size, noise_level_weights, sage_equalizer
from mmrl.objective.credit.rollouts import clip_advantage
from mmrl.objective.ratios import grpo_guard
from mmrl.objective.regularizers.kl import gaussian_kl, grown, old_policy_kl
from mmrl.objective.trust_regions.gates import flow_dppo
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.policies.generation.sde import gradient_equalizer, noise, schedule
from mmrl.recipes import load_recipe
from mmrl.record import Batch, Evaluation
from mmrl.training.config import TrainingConfig
from mmrl.training.passes import plan_passes

RECIPES = (
    "flow_grpo", "flow_grpo_fast", "dance_grpo", "mix_grpo", "densegrpo", "tempflow_grpo", "grpo_guard", "flow_dppo",
    "sage_grpo",
)  # fmt: skip


def batch(mask, **fields) -> Batch:
    mask = torch.as_tensor(mask).bool()
    fields = {"group": torch.zeros(len(mask), dtype=torch.long), "old_log_probs": torch.zeros(mask.shape)} | fields
    return Batch(mask=mask, **fields)


def near(value, expected, tolerance=1e-5):
    torch.testing.assert_close(value, torch.as_tensor(expected).to(value), rtol=0, atol=tolerance)


class TestDenseGRPO:
    VALUES = torch.tensor([[0.20, 0.30, 0.25], [0.20, 0.10, 0.40]])
    REWARD = torch.tensor([0.50, 0.45])

    def advantage(self, mask, values, reward, **fields):
        return densegrpo(batch(mask, reward=reward, columns={"step_rewards": values}, **fields), eps=0.0)

    def test_by_hand(self):
        near(self.advantage(torch.ones(2, 3), self.VALUES, self.REWARD), [[1, -1, 1], [-1, 1, -1]])

    def test_steps_that_are_not_trained_are_bridged(self):
        """Trained steps 0 and 2: gains are V_2 - V_0 = .05 | .20 and R - V_2 = .25 | .05."""
        mask = torch.tensor([[1, 0, 1], [1, 0, 1]])
        near(self.advantage(mask, self.VALUES * mask, self.REWARD), [[-1, 0, 1], [1, 0, -1]])

    def test_gains_telescope(self):
        """With one group per row's scale removed: three members, gains add up to reward - first value."""
        values, reward = torch.rand(3, 4), torch.rand(3)
        columns = {"step_rewards": values}
        made = densegrpo(batch(torch.ones(3, 4), reward=reward, columns=columns), eps=0.0, ddof=0)
        following = torch.cat([values[:, 1:], reward[:, None]], 1)
        gains = following - values
        near(made, (gains - gains.mean(0)) / gains.std(0, unbiased=False), 1e-4)
        near(gains.sum(1), reward - values[:, 0])

    def test_equal_gains_and_unscored_rows_give_zero(self):
        reward = torch.tensor([0.5, 0.5, float("nan")])
        values = torch.full((3, 2), 0.1)
        counted = torch.tensor([True, True, False])
        made = densegrpo(batch(torch.ones(3, 2), reward=reward, counted=counted, columns={"step_rewards": values}))
        near(made, torch.zeros(3, 2))

    def test_groups_apart(self):
        one = self.advantage(torch.ones(2, 3), self.VALUES, self.REWARD)
        both = self.advantage(
            torch.ones(4, 3), torch.cat([self.VALUES, 1 + 3 * self.VALUES]),
            torch.cat([self.REWARD, 1 + 3 * self.REWARD]), group=torch.tensor([0, 0, 1, 1]),
        )  # fmt: skip
        near(both, torch.cat([one, one]))


class TestTempFlow:
    def test_branches_of_a_step_are_compared_with_each_other(self):
        made = tempflow_grpo(
            batch(
                torch.ones(6, 1),
                reward=torch.tensor([1.0, 0.0, 10.0, 30.0, 5.0, 5.0]),
                group=torch.tensor([0, 0, 0, 0, 1, 1]),
                columns={"branch": torch.tensor([0, 0, 3, 3, 0, 0])},
            ),
            eps=0.0,
        )
        near(made[:4], [1, -1, -1, 1])
        near(tempflow_grpo(batch(torch.ones(2, 1), reward=torch.ones(2), columns={"branch": torch.zeros(2)})), [0, 0])

    def test_or_with_those_of_the_prompts_other_seeds_at_that_step(self):
        """Two seeds, two steps, two branches each: the second seed is luckier, which `seed` does not see."""
        rewards = torch.tensor([1.0, 0.0, 4.0, 2.0, 11.0, 10.0, 14.0, 12.0])
        step = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
        columns = {"branch": torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])}
        rows = batch(torch.nn.functional.one_hot(step, 2).float(), reward=rewards, columns=columns)
        near(tempflow_grpo(rows, eps=0.0), [1, -1] * 4)
        made = tempflow_grpo(rows, within="prompt", eps=0.0)
        for at in (0, 1):
            ours = rewards[step == at]
            near(made[step == at], (ours - ours.mean()) / ours.std(correction=0))
        assert (made[:4] < 0).all() and (made[4:] > 0).all()

    def test_noise_level_weights_by_hand(self):
        times = schedule(10, 3)
        std = noise("flow_sde", times[:-1], times[1:], 0.7, times[1]).std[:9]
        mask = torch.eye(9)
        weighted, _ = noise_level_weights(mask * 2.0, batch(mask, columns={"step_std": mask * std}))
        expected = [1.56896, 1.65496, 1.19171, 0.98947, 0.86906, 0.78448, 0.71613, 0.65106, 0.57418]
        near(weighted.diagonal() / 2, expected)
        near(weighted.diagonal().mean() / 2, 1.0)
        near(1 / std.mean(), 2.2414, 1e-3)

    def test_weights_do_not_depend_on_how_often_a_step_occurs(self):
        std = torch.tensor([[0.6, 0.0], [0.0, 0.2], [0.0, 0.2], [0.0, 0.2]])
        weighted, _ = noise_level_weights((std > 0).float(), batch(std > 0, columns={"step_std": std}))
        near(weighted, [[1.5, 0], [0, 0.5], [0, 0.5], [0, 0.5]])


class TestCredit:
    def test_equalizer_and_clip(self):
        factors = gradient_equalizer("flow_sde", schedule(10, 3), 0.7)[None, :9]
        made, _ = sage_equalizer(torch.ones(1, 9), batch(torch.ones(1, 9), columns={"step_equalizer": factors}))
        near(made[0, :3], [4.2910, 3.1508, 1.9447], 1e-4)
        clipped, _ = clip_advantage(torch.tensor([[-7.0, 2.0, 9.0]]), batch(torch.ones(1, 3)))
        near(clipped, [[-5, 2, 5]])

    def test_inverse_step_size(self):
        sizes = torch.tensor([[0.1, 0.5, 0.0]])
        made, _ = inverse_step_size(torch.ones(1, 3), batch([[1, 1, 0]], columns={"step_sizes": sizes}))
        near(made, [[10, 2, 0]])


class TestGuard:
    def test_by_hand(self):
        """dlogp -3e-4, mean squared drift 2e-4, s .3: raw ratio .99970, normalised 1.000243."""
        b = 2e-4 / (2 * 0.3**2)
        made = grpo_guard(
            Evaluation(torch.full((1, 1), -3e-4), {"mean_shift": torch.full((1, 1), b)}),
            batch([[1]], columns={"step_std": torch.full((1, 1), 0.3)}),
        )
        near(made.exp(), [[1.000243]], 1e-6)

    def test_removes_the_bias_and_the_dependence_on_noise(self):
        """Steps drawn from the old policy, means moved by rms .02, D = 4096."""
        generator = torch.Generator().manual_seed(0)
        for s in (0.3, 0.1):
            drift = 0.02 * torch.randn(1000, 4096, generator=generator)
            moved = s * torch.randn(1000, 4096, generator=generator) - drift
            difference = ((moved + drift) ** 2 - moved**2).mean(1, keepdim=True) / (2 * s**2)
            shift = (drift**2).mean(1, keepdim=True) / (2 * s**2)
            mask = torch.ones(1000, 1)
            made = grpo_guard(
                Evaluation(difference, {"mean_shift": shift}), batch(mask, columns={"step_std": s * mask})
            )
            assert abs(difference.mean() + shift.mean()) < 5 * difference.std() / 1000**0.5
            assert difference.mean() < -0.002 and abs(made.mean()) < 5e-5
            near(made.std(), 0.02 / 4096**0.5, 2e-5)


class TestDPPO:
    def objective(self, advantage, ratio, shift):
        log_ratio = torch.tensor([[ratio]]).log().requires_grad_()
        made = flow_dppo(
            log_ratio,
            Evaluation(torch.zeros(1, 1), {"mean_shift": torch.tensor([[shift]])}),
            batch([[1]], advantage=torch.tensor([[advantage]])),
        )
        (gradient,) = (
            torch.autograd.grad(made.sum(), log_ratio, allow_unused=True, materialize_grads=True)
            if (made.requires_grad)
            else (torch.zeros(1, 1),)
        )
        return made.item(), gradient.item()

    @pytest.mark.parametrize(
        ("advantage", "ratio", "shift", "active"),
        [(1.0, 1.01, 2e-5, False), (1.0, 0.99, 2e-5, True), (-1.0, 0.99, 2e-5, False), (-1.0, 1.01, 2e-5, True),
         (1.0, 1.01, 0.5e-5, True), (-1.0, 0.99, 0.5e-5, True)],
    )  # fmt: skip
    def test_blocked_only_outside_and_outwards(self, advantage, ratio, shift, active):
        value, gradient = self.objective(advantage, ratio, shift)
        assert value == pytest.approx(advantage * ratio)
        assert gradient == pytest.approx(advantage * ratio if active else 0.0)


class TestRegularizers:
    def test_outside_the_mask_is_zero(self):
        made = gaussian_kl(Evaluation(torch.zeros(1, 2), {"reference_kl": torch.tensor([[0.3, 7.0]])}), batch([[1, 0]]))
        near(made, [[0.3, 0]])

    def test_old_policy_kl_is_zero_on_policy_with_a_gradient(self):
        log_probs = torch.zeros(1, 2, requires_grad=True)
        penalty = old_policy_kl(Evaluation(log_probs), batch([[1, 1]]))
        near(penalty.detach(), [[0, 0]])
        near(torch.autograd.grad(penalty.sum(), log_probs)[0], [[-1, -1]])

    def test_sage_s_coefficients_grow_to_their_cap(self):
        """From a hundredth by one factor a step: a tenth half way, all of it at the end and behind it."""
        at = [grown(batch([[1]], step=step), 0.01, 100) for step in (0, 50, 100, 300)]
        near(torch.tensor(at), [0.01, 0.1, 1.0, 1.0])
        kl = Evaluation(torch.zeros(1, 2), {"reference_kl": torch.tensor([[0.3, 7.0]])})
        near(gaussian_kl(kl, batch([[1, 0]], step=50), to="anchor", start=0.01), [[0.03, 0]])
        with pytest.raises(ConfigError, match="start=0"):
            grown(batch([[1]]), 0.0, 100)


class TestRecipes:
    @pytest.mark.parametrize("name", RECIPES)
    def test_every_part_is_valid_and_every_need_is_offered(self, name):
        recipe = load_recipe(name)
        assert recipe.modalities == ["flow"]
        FlowPolicyConfig(model="x", **recipe.policy)
        TrainingConfig(**recipe.training)
        plan_passes(Objective.of(recipe.objective), FlowPolicy)

    @pytest.mark.parametrize("name", RECIPES)
    def test_one_step_on_plain_tensors(self, name):
        """At the rollout's own weights the loss has a finite gradient that raises what was rewarded."""
        rows, steps = 8, 4
        mask = torch.ones(rows, steps + 1)
        mask[:, -1] = 0
        times = schedule(steps + 1, 3)
        std = noise("flow_sde", times[:-1], times[1:], 0.7, times[1]).std
        columns = {
            "step_std": std * mask,
            "step_sizes": (times[:-1] - times[1:]) * mask,
            "step_equalizer": gradient_equalizer("flow_sde", times, 0.7) * mask,
            "branch": torch.arange(rows) // 2 % 2,
            "step_rewards": torch.linspace(0, 0.2, steps + 1) * mask,
        }
        made = batch(
            mask,
            reward=torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0]),
            group=torch.arange(rows) // 4,
            columns=columns,
        )
        objective = Objective.of(load_recipe(name).objective)
        prepared, weights = objective.prepare(made)
        log_probs = torch.zeros(rows, steps + 1, requires_grad=True)
        quiet = torch.zeros(rows, steps + 1)
        evaluation = Evaluation(log_probs, {"reference_kl": quiet, "mean_shift": quiet})
        objective.loss(evaluation, prepared, weights).loss.backward()
        assert torch.isfinite(log_probs.grad).all() and (log_probs.grad[:, -1] == 0).all()
        learns = prepared.advantage != 0
        assert learns.any(1).all() and ((prepared.advantage > 0) == (made.reward[:, None] == 1))[learns].all()
        assert ((log_probs.grad < 0) == (prepared.advantage > 0))[learns].all()


class TestVGPO:
    """Q of [.2, .4, .6] at gamma .9: 1.046, .94, .6; weights 1.21346, 1.09049, .69606."""

    FIRST, SECOND = [0.2, 0.4, 0.6], [0.1, 0.5, 0.9]

    def advantage(self, rows, **options):
        """Rewards behind each step: the last is the row's own, the others stand before the next action."""
        rows = torch.tensor(rows)
        values = torch.cat([torch.zeros(len(rows), 1), rows[:, :-1]], 1)
        made = batch(torch.ones(rows.shape), reward=rows[:, -1], columns={"projected_rewards": values})
        return vgpo(made, **({"first": 1.0, "eps": 0.0} | options))

    def test_by_hand(self):
        expected = [[-1.08653, -0.98798, -0.65429], [1.24040, 1.27396, 0.84351]]
        near(self.advantage([self.FIRST, self.SECOND]), expected, 2e-5)

    def test_a_group_that_is_alike_keeps_the_absolute_term(self):
        expected = 0.1 * torch.tensor([1.046, 0.94, 0.6]) * torch.tensor([1.21346, 1.09049, 0.69606])
        near(self.advantage([self.FIRST, self.FIRST], eps=1e-4), expected.expand(2, 3), 1e-4)
        half = self.advantage([self.FIRST, self.FIRST], eps=1e-4, first=0.5)
        assert half[:, :2].all() and not half[:, 2].any(), "the first half of three steps is two"

    def test_a_floor_moves_all_rewards(self):
        lower = [[r - 1 for r in row] for row in (self.FIRST, self.SECOND)]
        near(self.advantage(lower, floor=-1.0), self.advantage([self.FIRST, self.SECOND]), 1e-4)
        with pytest.raises(PolicyError, match=r"-0.9 lies below floor=0"):
            self.advantage(lower)
