"""Euphonium: rollouts are pushed, scored as if they were not, and evaluation knows nothing of it."""

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective.advantages.process import euphonium
from mmrl.objective.regularizers.pushed import PUSHED
from mmrl.policies.generation.pushing import Push, PushConfig, Seen
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

def bright(outputs, prompts):
    import numpy
    return [float(numpy.asarray(each).mean()) / 255 for each in outputs]

def none(outputs, prompts):
    return [float("nan")] * len(outputs)

def one(outputs, prompts):
    return [1.0]
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


def linear(named, slope, **options):
    """A push of pixels whose outputs are the clean latents, and whose reward is linear in them."""
    push = pushed(named, "bright", of="pixels", **options)
    push.decode, push.key = lambda clean, conditioned: list(clean), Key(1)
    push.reward = lambda outputs, prompts: [float((each * slope).sum()) for each in outputs]
    return push


class TestPixels:
    def test_one_number_is_estimated_exactly(self, named):
        """r = 3 x0 and one dimension: (3 (x0 + s u) - 3 (x0 - s u)) / 2s u = 3 u^2 = 3, whatever u."""
        push, x, seen = (
            linear(named, torch.tensor([3.0]), scale=1.0),
            torch.ones(2, 1),
            Seen(torch.ones(2, 1), None, [0, 1]),
        )
        shift = push.shift(0, x, torch.tensor(0.5), torch.tensor(1.0), ["p0", "p1"], seen)
        assert shift.flatten().tolist() == pytest.approx([3, 3], rel=1e-5)
        worth = push.worth(x, torch.tensor(0.5), ["p0", "p1"], seen)
        assert worth.tolist() == pytest.approx([1.5, 1.5]), "3 x0, x0 = 1 - .5"

    def test_the_mean_over_directions_is_the_gradient(self, named):
        slope = torch.tensor([1.0, -2.0, 0.0, 0.5])
        push, x = linear(named, slope, scale=1.0, pairs=400), torch.zeros(1, 4)
        seen = Seen(torch.zeros(1, 4), None, [3])
        found = push.shift(0, x, torch.tensor(0.5), torch.tensor(1.0), ["p0"], seen)[0]
        error = 4 * float(slope.square().sum()) ** 0.5 / 400**0.5  # four standard errors
        assert (found - slope).abs().max() < error < 0.5

    def test_directions_are_the_rows_own_wherever_it_is_sampled(self, named):
        push, t = linear(named, torch.arange(4.0), scale=1.0), torch.tensor(0.5)
        x, h = torch.zeros(2, 4), torch.tensor(1.0)
        both = push.shift(2, x, t, h, ["p0", "p1"], Seen(x, None, [4, 5]))
        alone = push.shift(2, x[1:], t, h, ["p1"], Seen(x[1:], None, [5]))
        other = push.shift(3, x[1:], t, h, ["p1"], Seen(x[1:], None, [5]))
        assert torch.equal(both[1:], alone) and not torch.equal(alone, other)

    def test_rollouts_of_a_generator_become_brighter(self, named):
        push = named("bright", of="pixels", scale=3e3, pairs=4)
        made = [flow_policy(**SETTINGS, **extra).rollout(flow_requests(), KEY) for extra in ({}, {"push": push})]
        brightness = [sum(torch.tensor(list(o.getdata())).float().mean() for o in rows.outputs) for rows in made]
        assert brightness[1] > brightness[0] + 1
        worth = made[1].columns[Need("process_reward").key]
        assert (worth[:, :5] > 0).all() and (worth[:, 5] == 0).all()

    def test_what_is_no_judgement_is_refused(self, named):
        for name, said in (("none", "not finite"), ("one", r"returned \(1,\) for 6 outputs")):
            with pytest.raises(PolicyError, match=said):
                flow_policy(**SETTINGS, push=named(name, of="pixels")).rollout(flow_requests(), KEY)


class TestDistillation:
    def test_the_penalty_is_the_kl_to_the_pushed_step(self, named):
        """The worked number: a shift of .001 under a standard deviation of .25 sqrt(.1): 1e-6 / (2 x .00625) = 8e-5."""
        policy = flow_policy(**SETTINGS, push=named("near_one", scale=2.0, keep=True))
        rows = policy.rollout(flow_requests(), KEY)
        found = policy.evaluate(rows, [PUSHED]).columns[PUSHED.key][rows.mask]
        means = flow_policy(**SETTINGS, keep_means=True, push=named("near_one", scale=2.0, keep=True))
        kept = means.rollout(flow_requests(), KEY).replay
        shift = (kept["pushed"] - kept["means"])[:, :-1].flatten(2).square().mean(2).flatten()
        std = rows.columns[Need("step_std").key][rows.mask]
        assert (shift > 0).all() and found.tolist() == pytest.approx((shift / (2 * std**2)).tolist(), rel=1e-3)
        assert pytest.approx(8e-5) == 1e-6 / (2 * (0.25 * 0.1**0.5) ** 2)

    def test_its_gradient_goes_to_what_the_push_wants(self, named):
        """One step down it and the policy's own mean is nearer to the pushed one; without a push it is where it was."""
        policy = flow_policy(**SETTINGS, push=named("near_one", scale=2.0, keep=True))
        rows = policy.rollout(flow_requests(), KEY)
        before = policy.evaluate(rows, [PUSHED]).columns[PUSHED.key].sum()
        before.backward()
        weights = [p for p in policy.module.parameters() if p.grad is not None]
        length = sum(float(p.grad.square().sum()) for p in weights)
        with torch.no_grad():
            for p in weights:
                p -= 0.01 * before / length * p.grad
        assert policy.evaluate(rows, [PUSHED]).columns[PUSHED.key].sum() < 0.995 * before
        still = flow_policy(**SETTINGS, push=named("near_one", scale=0.0, keep=True))
        rows = still.rollout(flow_requests(), KEY)
        assert still.evaluate(rows, [PUSHED]).columns[PUSHED.key].max() < 1e-9

    def test_what_was_not_kept_is_named(self, named):
        policy = flow_policy(**SETTINGS, push=named("near_one"))
        with pytest.raises(PolicyError, match=r"policy\.push\.keep=true"):
            policy.evaluate(policy.rollout(flow_requests(), KEY), [PUSHED])


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
