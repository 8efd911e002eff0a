"""Levels of noise by step: what they draw, and DenseGRPO's calibration of them."""

import re

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mmrl.errors import ConfigError, PolicyError
from mmrl.pipelines.calibrating import _use
from mmrl.pipelines.cli import app
from mmrl.pipelines.config import shipped_asset
from mmrl.policies.generation.calibration import calibrated, imbalance
from mmrl.policies.generation.config import FlowPolicyConfig, Sampler
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.policies.generation.sde import noise, schedule, sde_step, stochastic_steps
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.stages import Need

NAN = float("nan")
STEPS = 5


def tensor(rows: list) -> Tensor:
    return torch.tensor(rows)


class TestCalibration:
    """Three steps, four samples: one balanced, one that mostly loses, one that draws no noise."""

    gains = tensor([[0.2, -0.1, 0.0], [-0.3, -0.2, 0.0], [0.1, -0.4, 0.0], [-0.2, 0.3, 0.0]])
    drawn = tensor([[True, True, False]] * 4)

    def test_by_hand(self):
        assert imbalance(self.gains, self.drawn).tolist() == [0, 2, 0]
        moved = calibrated(torch.full((3,), 0.7), self.gains, self.drawn, allowed=2, by=0.01)
        assert torch.allclose(moved, tensor([0.71, 0.69, 0.7])), "below 2 is balanced, 2 is not"

    def test_mostly_gains_are_no_balance_either(self):
        assert torch.allclose(
            calibrated(torch.full((3,), 0.7), -self.gains, self.drawn, allowed=2, by=0.01), tensor([0.71, 0.69, 0.7])
        )

    def test_what_was_not_scored_says_nothing(self):
        lost = torch.where(tensor([[True], [False], [True], [True]]), self.gains, NAN)
        assert imbalance(lost, self.drawn).tolist() == [1, 1, 0]
        none = torch.full((4, 3), NAN)
        assert calibrated(torch.full((3,), 0.7), none, self.drawn, allowed=2).tolist() == pytest.approx([0.7] * 3)

    def test_no_level_runs_down_to_nothing(self):
        assert calibrated(tensor([0.015]), -torch.ones(4, 1), torch.ones(4, 1).bool(), allowed=1)[0] == pytest.approx(
            0.01
        )

    def test_it_finds_the_level_at_which_balance_ends(self):
        """A model that loses in every sample above .4 and gains as often as it loses below."""
        levels = tensor([0.7, 0.1])
        for _ in range(60):
            signs = torch.where(levels > 0.4, -1.0, tensor([[1.0], [-1.0]]))
            levels = calibrated(levels, signs, torch.ones(2, 2).bool(), allowed=1)
        assert torch.allclose(levels, tensor([0.4, 0.4]), atol=0.0201)


class TestLevels:
    @pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps", "sage_sde"])
    def test_equal_levels_are_one_level_and_others_are_each_their_own(self, kind):
        times = schedule(STEPS, 3.0)
        t, following = times[:-1], times[1:]
        one = noise(kind, t, following, 0.5, times[1])
        each = noise(kind, t, following, torch.full((STEPS,), 0.5), times[1])
        assert torch.allclose(one.std, each.std) and torch.allclose(one.drift, each.drift)
        levels = torch.linspace(0.1, 0.6, STEPS)
        mixed = noise(kind, t, following, levels, times[1])
        alone = [noise(kind, t[i], following[i], float(levels[i]), times[1]).std for i in range(STEPS)]
        assert torch.allclose(mixed.std, torch.stack(alone))
        assert stochastic_steps(kind, times, torch.zeros(STEPS)).sum() == 0

    def test_psi_is_the_deviation_itself_of_a_constant_sampler(self):
        """Equation 11: sigma_t = psi(t), and the drift sigma_t^2 / 2t is Flow-GRPO's."""
        x, velocity = torch.ones(2, 3), torch.zeros(2, 3)
        psi, t, following = tensor([0.3, 0.6]), tensor([0.8, 0.5]), tensor([0.6, 0.4])
        mean, std = sde_step("dance_sde", velocity, x, t, following, psi, 0.9)
        h = t - following
        assert torch.allclose(std, psi * h.sqrt())
        assert torch.allclose(mean[:, 0], 1 - psi**2 / (2 * t) * h)

    def test_mistakes_are_one_line(self):
        with pytest.raises(ConfigError, match=r"sampler\.levels: got 2 for policy\.steps=10; expected one for each"):
            FlowPolicyConfig(model="-", sampler={"levels": [0.1, 0.2]})
        with pytest.raises(ConfigError, match="cps takes 0 to 1"):
            Sampler(kind="cps", levels=[1.2])

    def test_training_scores_each_step_as_it_was_drawn(self):
        levels = [0.1, 0.8, 0.3, 0.6, 0.2]
        options = {"model": str(shipped_asset("tiny_flow")), "steps": STEPS, "lora": None, "max_sequence_length": 16}
        policy = FlowPolicy.from_config(FlowPolicyConfig(**options, sampler={"levels": levels}))
        prompt = Prompt("a", [{"role": "user", "content": "a red square"}])
        rollouts = policy.rollout([Request(prompt, 2, group=0)], Key(0, 1))
        with torch.no_grad():
            scored = policy.evaluate(rollouts).log_probs
        assert torch.allclose(scored, rollouts.old_log_probs, atol=1e-4) and rollouts.mask.sum(1).tolist() == [3, 3]
        times = policy.times(STEPS)
        expected = noise("flow_sde", times[:-1], times[1:], torch.tensor(levels), times[1]).std[:3]
        assert torch.allclose(rollouts.columns[Need("step_std").key][0, :3], expected)
        _use(policy, torch.tensor(levels) / 2)
        calmer = policy.rollout([Request(prompt, 2, group=0)], Key(0, 1))
        column = Need("step_std").key
        assert torch.allclose(calmer.columns[column][0, :3], rollouts.columns[column][0, :3] / 2, atol=1e-6)
        with torch.no_grad():
            again = policy.evaluate(calmer).log_probs
        assert torch.allclose(again, calmer.old_log_probs, atol=1e-4), "what calibration tries is what is drawn"
        policy.config.sampler = Sampler(level=0.7)
        with pytest.raises(PolicyError, match=r"drawn with level=-1, this policy scores with 0\.7"):
            policy.evaluate(rollouts)


def test_the_command_prints_levels_that_a_run_takes(tmp_path):
    def called(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    small = [
        "policy.steps=4",
        "policy.eval_steps=4",
        "recipe=densegrpo",
        "policy.ema=null",
        "policy.train_steps.select=all",
    ]
    told = called("calibrate", "demo", "--rounds", "2", "--samples", "6", *small)
    found = re.search(r"policy\.sampler\.levels=\[(.*)\]", told.replace("\n", ""))
    levels = [float(level) for level in found[1].split(",")]
    assert len(levels) == 4 and levels[-1] == pytest.approx(0.7), "the last step draws no noise"
    assert {round(level - 0.7, 6) for level in levels[:-1]} <= {-0.02, 0.0, 0.02}, "two rounds of a hundredth"
    assert told.count("imbalance") == 2
    run = ["training.steps=1", "training.prompts_per_step=1", "training.group_size=2", "data.eval=null"]
    setting = f"policy.sampler.levels={levels}"
    called("train", "flow", "demo", *small, *run, "training.updates.count=1", f"run_dir={tmp_path / 'run'}", setting)
