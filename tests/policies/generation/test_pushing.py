"""Euphonium: rollouts are pushed, scored as if they were not, and evaluation knows nothing of it."""

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective.advantages.process import euphonium
from mmrl.policies.generation.pushing import Push, PushConfig
from mmrl.policies.generation.sde import sde_step, transition_log_prob
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.stages import Need
from tests.policies.generation.tiny import flow_policy, flow_requests

KEY = Key(3)
REWARDS = """
import torch

def near_one(x, t, prompts):
    return -((x - 1) ** 2).flatten(1).sum(1) / 2

def by_prompt(x, t, prompts):
    return x.flatten(1).sum(1) * torch.tensor([float("red" in p) for p in prompts])

def constant(x, t, prompts):
    return torch.zeros(len(x))

def scalar(x, t, prompts):
    return x.sum()
"""
SETTINGS = {"sampler": {"kind": "dance_sde", "level": 0.25}}


@pytest.fixture
def named(tmp_path):
    file = tmp_path / "latent_rewards.py"
    file.write_text(REWARDS)
    return lambda name, **options: {"reward": f"{file}:{name}", **options}


def pushed(named, name="near_one", **options):
    return Push(PushConfig(**named(name, **options)), {"p0": "a red circle", "p1": "a blue square"})


def test_the_worked_number(named):
    """P = -(x - 1)^2 / 2 at x = 0, eta .25, beta 3.125, h .1: c = .25^2 / 6.25 h = .001, times the gradient 1."""
    push, x, t = pushed(named), torch.zeros(1, 1), torch.tensor(0.8)
    shift = push.shift(0, x, t, torch.tensor(0.1), ["p0"])
    assert shift.item() == pytest.approx(0.001)
    mean, std = sde_step("dance_sde", torch.zeros(1, 1), x, 0.8, 0.7, 0.25, 0.9)
    where = mean + shift + 0.0 * std
    assert transition_log_prob(where, mean, std) < transition_log_prob(where, mean + shift, std)


def test_where_and_how_long(named):
    x, t, h = torch.full((2, 3), 4.0), torch.tensor(0.5), torch.tensor(0.1)
    window = pushed(named, first=2, last=4)
    assert [bool(window.shift(step, x, t, h, ["p0", "p1"]).any()) for step in range(5)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    unit = pushed(named, normalise=True, scale=1.0).shift(0, x, t, torch.tensor(1.0), ["p0", "p1"])
    assert unit.norm(dim=1).tolist() == pytest.approx([1, 1])
    apart = pushed(named, "by_prompt").shift(0, x, t, h, ["p0", "p1"])
    assert apart[0].any() and not apart[1].any(), "a prompt's own reward"


def test_without_scale_rollouts_are_the_samplers(named):
    plain = flow_policy(**SETTINGS).rollout(flow_requests(), KEY)
    still = flow_policy(**SETTINGS, push=named("near_one", scale=0.0)).rollout(flow_requests(), KEY)
    assert torch.equal(plain.old_log_probs, still.old_log_probs)
    assert torch.equal(plain.replay["latents"], still.replay["latents"])


def test_rollouts_go_up_the_reward_and_are_scored_unpushed(named):
    policy = flow_policy(**SETTINGS, push=named("near_one", scale=2.0))
    rows, plain = policy.rollout(flow_requests(), KEY), flow_policy(**SETTINGS).rollout(flow_requests(), KEY)
    worth = rows.columns[Need("process_reward").key]
    still = flow_policy(**SETTINGS, push=named("near_one", scale=0.0)).rollout(flow_requests(), KEY)
    assert (worth[:, 4] > still.columns[Need("process_reward").key][:, 4]).all()
    assert (worth[:, -1] == 0).all(), "the ODE's last step is no action"
    assert (rows.old_log_probs.sum(1) < plain.old_log_probs.sum(1)).all(), "unlikely to the policy alone"
    assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-5
    greedy = [
        p.rollout(flow_requests(), KEY, greedy=True).outputs[0].tobytes() for p in (policy, flow_policy(**SETTINGS))
    ]
    assert greedy[0] == greedy[1], "evaluation has no push"


def test_what_cannot_push_is_refused(named):
    x = torch.zeros(2, 3)
    for name, said in (("constant", "no gradient"), ("scalar", r"returned \(\) for 2 states")):
        with pytest.raises(PolicyError, match=said):
            pushed(named, name).shift(0, x, torch.tensor(0.5), torch.tensor(0.1), ["p0", "p1"])
    with pytest.raises(ConfigError, match=r"file\.py:function"):
        Push(PushConfig(), {})
    with pytest.raises(ConfigError, match="likelihood=transition"):
        flow_policy(likelihood="matching", draws={"count": 2}, push=named("near_one"))


def test_both_advantages_by_hand():
    """Outcome (1, -1) x .7071 at every step; process at each step by itself, with the spread of that step's values."""
    batch = Batch(
        mask=torch.tensor([[True, True, False], [True, True, False]]), old_log_probs=torch.zeros(2, 3),
        group=torch.zeros(2, dtype=torch.long), reward=torch.tensor([1.0, 0.0]),
        columns={"process_reward": torch.tensor([[3.0, 0.2, 0.0], [1.0, 0.8, 0.0]])},
    )  # fmt: skip
    half = 0.70711
    found = euphonium(batch)
    assert found[0].tolist() == pytest.approx([2 * half, 0, 0], abs=1e-4)
    assert found[1].tolist() == pytest.approx([-2 * half, 0, 0], abs=1e-4)
    assert euphonium(batch, process=0.0)[0].tolist() == pytest.approx([half, half, 0], abs=1e-4)
