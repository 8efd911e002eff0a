"""Samplers: worked numbers, edge cases, and marginals on one-dimensional Gaussian data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.sde import (
    gaussian_kl,
    gradient_equalizer,
    mean_square,
    noise,
    predicted_clean,
    schedule,
    sde_step,
    stochastic_steps,
    transition_log_prob,
)

X, V = torch.ones(1, 1), torch.full((1, 1), 0.5)
KINDS = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "sage_sde": 0.7}


def near(value, expected, tolerance=1e-5):
    assert torch.as_tensor(value, dtype=torch.float64).sub(torch.as_tensor(expected)).abs().max() < tolerance, value


def test_shifted_schedule():
    near(
        schedule(10, 3),
        [1, 0.96429, 0.92308, 0.875, 0.81818, 0.75, 0.66667, 0.5625, 0.42857, 0.25, 0],
    )
    assert schedule(7, 3)[0] == 1 and schedule(7, 3)[-1] == 0
    near(schedule(4), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("flow_sde", 0.81525, 0.4427189),
        ("dance_sde", 0.9438125, 0.0948683),
        ("cps", 0.4179431, 0.6657396),
        ("sage_sde", 0.8470964, 0.3868823),
    ],
)
def test_one_step_by_hand(kind, mean, std):
    step = sde_step(kind, V, X, 0.8, 0.7, KINDS[kind], 0.9)
    near(step.mean, mean, 1e-6)
    near(step.std, std, 1e-6)


def test_ode_step_and_prediction():
    step = sde_step("ode", V, X, 0.8, 0.7, 0.0, 0.9)
    near(step.mean, 0.95, 1e-6)
    assert step.std == 0
    near(predicted_clean(V, X, 0.8), 0.6, 1e-6)


def test_log_prob_by_hand():
    step = sde_step("flow_sde", V, X, 0.8, 0.7, 0.7, 0.9)
    drawn = step.mean + 0.3 * step.std
    near(drawn, 0.9480657, 1e-6)
    near(transition_log_prob(drawn, step.mean, step.std), -0.1491182, 1e-5)


def test_log_prob_is_the_density():
    """Against torch.distributions, for both reductions, and without constants."""
    x, mean, std = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.5, 2.0])
    density = torch.distributions.Normal(mean, std[:, None, None, None]).log_prob(x).flatten(1)
    torch.testing.assert_close(transition_log_prob(x, mean, std), density.mean(1))
    torch.testing.assert_close(transition_log_prob(x, mean, std, "sum"), density.sum(1))
    bare = transition_log_prob(x, mean, std, normalised=False)
    torch.testing.assert_close(bare, -((x - mean) ** 2).flatten(1).mean(1))


def test_a_deterministic_step_has_no_log_prob():
    x = torch.zeros(2, 4)
    assert transition_log_prob(x, x, torch.zeros(2)) is None
    with pytest.raises(PolicyError, match="deterministic"):
        transition_log_prob(x, x, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_level_zero_is_the_ode(kind):
    x, v = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    times = schedule(8, 3)
    for t, t_next in itertools.pairwise(times):
        step = sde_step(kind, v, x, t, t_next, 0.0, times[1])
        torch.testing.assert_close(step.mean, sde_step("ode", v, x, t, t_next, 0.0, times[1]).mean)
        assert transition_log_prob(x, step.mean, step.std) is None


def test_flow_sde_velocity_factor_is_constant():
    """d mean / d v = -h (1 + a^2 / 2) for every t below 1, and -h at t = 1."""
    times = schedule(10, 3)
    for i in range(10):
        v = torch.zeros(1, 1, requires_grad=True)
        step = sde_step("flow_sde", v, X, times[i], times[i + 1], 0.7, times[1])
        (slope,) = torch.autograd.grad(step.mean.sum(), v)
        near(slope / -(times[i] - times[i + 1]), 1.0 if i == 0 else 1.245, 1e-4)


def test_first_step_of_flow_sde_is_the_level_itself():
    for steps, shift in ((10, 3.0), (4, 1.0), (50, 5.0)):
        times = schedule(steps, shift)
        near(noise("flow_sde", times[0], times[1], 0.7, times[1]).std, 0.7, 1e-5)


def test_published_standard_deviations():
    times = schedule(10, 3)
    of = lambda kind, level: noise(kind, times[:-1], times[1:], level, times[1]).std  # noqa: E731
    flow = [0.7, 0.73837, 0.53169, 0.44146, 0.38774, 0.35, 0.3195, 0.29047, 0.25617, 0.20207]
    near(of("flow_sde", 0.7), flow)
    near(of("dance_sde", 0.3)[[0, -1]], [0.05669, 0.15])


def test_sage_first_step_and_its_limit():
    times = schedule(10, 3)
    variance = noise("sage_sde", times[0], times[1], 0.7, times[1]).std ** 2
    near(variance, 1.1962, 1e-4)
    near(noise("sage_sde", 0.95, 0.9, 0.7, 0.95).std ** 2, 0.3151, 1e-4)
    fine = schedule(400)  # the second time lies above .99699: no positive variance left
    assert noise("sage_sde", fine[0], fine[1], 0.7, fine[1]).std == 0
    assert stochastic_steps("sage_sde", fine, 0.7).tolist() == [False] + [True] * 398 + [False]


def test_cps_keeps_the_coefficients_of_the_schedule():
    drift, std = noise("cps", 0.8, 0.7, 0.8, 0.9)
    near((0.7 - drift) ** 2 + std**2, 0.49, 1e-6)


def test_flow_sde_adds_more_noise_than_the_schedule():
    drift, std = noise("flow_sde", 0.8, 0.7, 0.7, 0.9)
    near(((0.7 - drift) ** 2 + std**2).sqrt(), 0.7276718, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_is_never_an_action(kind):
    assert stochastic_steps(kind, schedule(5, 3), KINDS[kind]).tolist() == [True] * 4 + [False]


def test_cps_has_no_noise_at_the_end():
    assert noise("cps", 0.25, 0.0, 0.8, 0.9).std == 0


def test_nothing_is_trainable_without_noise():
    assert not stochastic_steps("ode", schedule(5), 0.0).any()
    assert not stochastic_steps("flow_sde", schedule(5), 0.0).any()


@pytest.mark.parametrize(
    ("kind", "level", "t", "error"),
    [
        ("cps", 1.2, 0.8, ConfigError),
        ("flow_sde", -0.1, 0.8, ConfigError),
        ("flow_sde", 0.7, 0.0, PolicyError),
        ("flow_ode", 0.7, 0.8, ConfigError),
    ],
)
def test_what_cannot_be_is_refused(kind, level, t, error):
    with pytest.raises(error):
        noise(kind, t, 0.7, level, 0.9)


def test_times_per_row_equal_one_at_a_time():
    """A replay scores steps of different times in one batch."""
    times, x, v = schedule(6, 3), torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    for kind, level in KINDS.items():
        together = sde_step(kind, v, x, times[:-1], times[1:], level, times[1].expand(6))
        for i in range(6):
            alone = sde_step(kind, v[i : i + 1], x[i : i + 1], times[i], times[i + 1], level, times[1])
            assert torch.equal(alone.mean[0], together.mean[i]) and alone.std == together.std[i]


def test_arithmetic_is_float32():
    step = sde_step("flow_sde", V.bfloat16(), X.bfloat16(), 0.8, 0.7, 0.7, 0.9)
    assert step.mean.dtype == torch.float32
    near(step.mean, 0.81525, 1e-6)


# ---- KL and equalizer


def test_kl_by_hand():
    one = torch.ones(1, 4)
    near(gaussian_kl(0.5 * one, 0.47 * one, torch.tensor([0.3]), torch.tensor([0.1])), 0.005, 1e-6)
    std, h = torch.tensor([0.4427189]), torch.tensor([0.1])
    near(gaussian_kl(0.03 * one, 0 * one, std, h), 0.0022959, 1e-6)
    near(gaussian_kl(0.03 * one, 0 * one, std, h, "legacy_no_dt"), 0.00022959, 1e-7)
    near(mean_square(0.2 * one, 0 * one), 0.04, 1e-7)


def test_kl_in_velocity_form():
    """t = .8, t_next = .7, a = .7: a velocity difference of .2 moves the mean by .0249, KL .0015817."""
    steps = [sde_step("flow_sde", V + d, X, 0.8, 0.7, 0.7, 0.9) for d in (0.0, 0.2)]
    near(steps[0].mean - steps[1].mean, 0.0249, 1e-6)
    kl = gaussian_kl(steps[0].mean, steps[1].mean, steps[0].std, torch.tensor([0.1]))
    near(kl, 0.0015817, 1e-6)
    g = 1.4
    near(kl, 0.05 * (g * 0.2 / 1.6 + 1 / g) ** 2 * 0.04, 1e-6)


def test_kl_is_the_divergence_of_two_normals():
    mean, other, std = torch.randn(2, 5), torch.randn(2, 5), torch.tensor([0.2, 0.9])
    normals = [torch.distributions.Normal(m, std[:, None]) for m in (mean, other)]
    expected = torch.distributions.kl_divergence(*normals).mean(1)
    torch.testing.assert_close(gaussian_kl(mean, other, std, torch.ones(2)), expected)


def test_gradient_equalizer_uses_the_lower_median():
    expected = [4.2910, 3.1508, 1.9447, 1.3663, 1, 0.7385, 0.5394, 0.3814, 0.2523, 0.1421]
    near(gradient_equalizer("flow_sde", schedule(10, 3), 0.7), expected, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equalizer_matches_autograd(kind):
    """N = |d mean / d v| / std, measured on the step itself."""
    times, norms = schedule(7, 3), []
    for i in range(6):
        v = torch.zeros(1, 1, requires_grad=True)
        step = sde_step(kind, v, X, times[i], times[i + 1], KINDS[kind], times[1])
        (slope,) = torch.autograd.grad(step.mean.sum(), v)
        norms.append((slope.abs() / step.std).item())
    factors = gradient_equalizer(kind, times, KINDS[kind])[:6]
    near(factors * torch.tensor(norms), [(factors[0] * norms[0]).item()] * 6, 1e-4)


# ---- marginals: data N(1, .5^2), exact velocity, last step ODE


def simulate(kind: str, level: float, steps: int, score_term: bool = True) -> float:
    generator = torch.Generator().manual_seed(0)
    times, data_mean, data_std = schedule(steps), 1.0, 0.5
    x = torch.randn(100_000, 1, generator=generator)
    for i in range(steps):
        t, t_next = times[i].item(), times[i + 1].item()
        centred = (x - (1 - t) * data_mean) / ((1 - t) ** 2 * data_std**2 + t**2)
        v = t * centred - (data_mean + (1 - t) * data_std**2 * centred)
        last = i == steps - 1
        step = sde_step("ode" if last else kind, v, x, t, t_next, level, times[1])
        mean = step.mean if score_term else sde_step("ode", v, x, t, t_next, level, times[1]).mean
        x = mean + step.std * torch.randn(x.shape, generator=generator)
    return x.std().item()


@pytest.mark.parametrize(
    ("kind", "level", "after_10", "after_50"),
    [
        ("ode", 0.0, 0.430, 0.485),
        ("flow_sde", 0.7, 0.479, 0.498),
        ("dance_sde", 0.3, 0.441, 0.488),
        ("sage_sde", 0.7, 0.512, 0.502),
        ("cps", 0.8, 0.351, 0.388),
    ],
)
def test_marginal_spread(kind, level, after_10, after_50):
    """All but cps approach the data's .5 as steps get small; cps contracts."""
    assert math.isclose(simulate(kind, level, 10), after_10, abs_tol=0.006)
    assert math.isclose(simulate(kind, level, 50), after_50, abs_tol=0.006)


def test_noise_without_the_score_term_is_far_too_wide():
    assert simulate("flow_sde", 0.7, 50, score_term=False) > 0.9


def exact_marginals(kind: str, level: float, steps: int, shift: float, below: float = 0.5) -> tuple[float, float]:
    """Largest error of mean and deviation at any time up to `below`, without sampling: each step is affine in x, so
    mean and variance go on exactly, and the path's own law N(1 - t, (1 - t)^2 .5^2 + t^2) is what they should be."""
    times, mean, variance, off = schedule(steps, shift), 0.0, 1.0, [0.0, 0.0]
    for i in range(steps - 1):
        t, t_next = times[i].item(), times[i + 1].item()
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float32)
        centred = (x - (1 - t)) / ((1 - t) ** 2 * 0.25 + t**2)
        step = sde_step(kind, t * centred - (1 + (1 - t) * 0.25 * centred), x, t, t_next, level, times[1])
        at_0, at_1 = step.mean.squeeze(1).tolist()
        mean, variance = at_0 + (at_1 - at_0) * mean, (at_1 - at_0) ** 2 * variance + float(step.std) ** 2
        law = 1 - t_next, math.sqrt((1 - t_next) ** 2 * 0.25 + t_next**2)
        if t_next <= below:
            off = [max(off[0], abs(mean - law[0])), max(off[1], abs(math.sqrt(variance) - law[1]))]
    return off[0], off[1]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("kind", "level"), [("ode", 0.0), ("flow_sde", 0.7), ("dance_sde", 0.3), ("sage_sde", 0.7)])
def test_marginals_are_the_path_s_and_better_with_every_doubling(kind, level, shift):
    """First order: half the step, half the error. In the noisier half flow_sde's first step, of deviation a however
    short it is, still shows."""
    few, many = (exact_marginals(kind, level, steps, shift) for steps in (50, 100))
    assert max(many) < 0.014 and many[0] < 0.7 * few[0] + 1e-6 and many[1] < 0.7 * few[1] + 1e-6


def test_cps_leaves_the_path():
    """The negative control: twice the steps bring it no nearer."""
    few, many = (exact_marginals("cps", 0.8, steps, 1.0) for steps in (50, 100))
    assert few[1] > 0.05 and many[1] > 0.8 * few[1]
