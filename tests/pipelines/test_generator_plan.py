"""`mmrl plan flow`: memory of a generator from its configurations, and settings that fit a card."""

import re

import pytest

from mmrl.pipelines.config import read_config
from mmrl.pipelines.generator_plan import fit, kept_of_rollouts, measures, memory_lines, pairs_of, peaks
from mmrl.pipelines.plan import plan_run

MIB = 2**20


@pytest.fixture(scope="module")
def demo():
    config = read_config("demo", [], "flow")
    return config, measures(config.policy_settings())


def test_weights_are_those_of_the_files(demo):
    """The tiny base has 1,326,827 numbers in all, float32 here."""
    _, found = demo
    assert found.transformer + found.frozen == pytest.approx(4 * 1326827, rel=0.01)
    assert found.adapters == 0 and found.trained * 4 == pytest.approx(found.transformer, rel=0.01)


def test_peaks_by_hand(demo):
    """Training holds weights, two moments, gradients, stored states, and what the graphs keep."""
    config, found = demo
    at = peaks(found, config, reference=False)
    pairs = pairs_of(config)
    assert pairs == 96 * 3
    stored = 96 * 4 * found.state
    assert found.state == 4 * 4 * 12 * 12
    expected = found.transformer + 3 * 4 * found.trained + stored + found.passes(pairs, 128)[0]
    assert at.training == expected == at.most
    assert peaks(found, config, reference=True).training == expected + found.transformer


@pytest.mark.parametrize(
    ("changed", "trained"),
    [
        (["policy.train_steps={select: all}"], 9),
        (["policy.train_steps={select: fraction, fraction: 0.5}"], 4),
        (["policy.train_steps={select: one}"], 1),
        (["policy.train_steps.also=[7]"], 4),
        (["recipe=awm", "policy.draws.count=2"], 2),
    ],
)
def test_pairs_are_the_states_of_an_output_that_are_trained(changed, trained):
    assert pairs_of(read_config("demo", changed, "flow")) == 96 * trained


def test_fewer_pairs_less_memory_and_nothing_for_latents_on_the_cpu(demo):
    config, found = demo
    base = peaks(found, config, reference=False)

    def changed(*changes):
        return peaks(found, read_config("demo", changes, "flow"), reference=False)

    fewer = changed("training.micro_batch_actions=8")
    assert fewer.training < base.training / 5 and fewer.sampling == base.sampling
    assert changed("policy.latents_on=cpu").training == base.training - 96 * 4 * found.state
    assert changed("policy.offload=false").training == base.training + found.frozen


def test_unconditional_velocities_take_as_much_as_the_states(demo):
    """96 rows, a window of 3 steps and so 4 states each; on the CPU they take none of the device."""
    config, found = demo
    guided = ["policy.guidance_scale=3", "policy.guidance=detached"]
    kept, asked, away = (
        peaks(found, read_config("demo", [*guided, more], "flow"), reference=False).training
        for more in ("training.seed=0", "policy.reuse_unconditional=false", "policy.latents_on=cpu")
    )
    assert kept - asked == 96 * 4 * found.state == (kept - away) / 2
    assert kept_of_rollouts(config.policy_settings(), 96, found.state) == (96 * 4 * found.state, 0)


def test_a_card_gets_settings_that_fit_it(demo):
    config, found = demo
    for room in (400 * MIB, 100 * MIB, 40 * MIB):
        changes, peak = fit(found, config, False, room)
        again = peaks(found, read_config("demo", changes, "flow"), reference=False)
        assert peak <= room and max(again.training, again.sampling) <= room
        assert changes, "as configured it takes more"
    assert fit(found, config, False, 1e12) == ([], peaks(found, config, False).most)
    assert fit(found, config, False, found.transformer) is None


def test_on_the_command_line_a_card_is_told_its_settings_and_a_small_one_that_nothing_fits(mmrl):
    done = mmrl("plan", "flow", "demo", "--card", "0.2")
    assert done.code == 0
    assert re.search(r"a card of 0\.2 GiB\n  .*training\.micro_batch_(actions|size)=\d+", done.out)
    assert "until its backward; 288 at once" in done.out
    assert "nothing fits: the transformer alone takes" in mmrl("plan", "flow", "demo", "--card", "0.001").out
    refused = mmrl("plan", "vlm", "demo", "--card", "24")
    assert refused.code != 0 and "for generators only" in refused.err + refused.out


def test_a_model_that_is_not_here_is_said_in_a_line(tmp_path):
    config = read_config("demo", [f"policy.model={tmp_path}/nowhere"], "flow")
    (line,) = memory_lines(config, reference=False)
    assert "cannot be counted" in line
    assert "cannot be counted" in plan_run(config)
