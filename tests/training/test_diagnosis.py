"""What is wrong, by worked numbers: a rule fires on its own fault, says the number, and is quiet on a healthy run."""

import re

import pytest

from mmrl.training.diagnosis import RULES, WINDOW, Doctor, diagnose, spells

HEALTHY = {
    "reward/mean": 0.5, "reward/std": 0.4, "reward/accuracy/mean": 0.5, "reward/accuracy/std": 0.4,
    "reward/format/mean": 0.9, "reward/format/std": 0.3, "reward/accuracy/parsed/mean": 0.9,
    "reward/unscored_fraction": 0.0, "success": 0.5, "signal/active_fraction": 0.8,
    "signal/zero_variance_fraction": 0.2, "length/truncated_fraction": 0.1, "entropy/sampled": 0.8,
    "ratio/clip_fraction": 0.05, "ratio/approx_kl": 0.002, "trust_region/acted": 1.0, "updates/of_step": 4,
    "regularizer/kl": 0.05, "gradient_norm": 0.8, "update/moved_fraction": 0.9, "unscored": {},
}  # fmt: skip
FAULTS = {
    "unscored": ({"reward/unscored_fraction": 0.25, "unscored": {"timeout": 7, "nan": 1}}, "25%.*timeout"),
    "truncated": ({"length/truncated_fraction": 0.97}, "97% .*cut.*policy.max_new_tokens"),
    "format": ({"reward/format/mean": 0.0, "reward/format/std": 0.0}, "'format' is 0.000.*data.system"),
    "constant": ({"reward/std": 0.0, "reward/mean": 0.0, "signal/active_fraction": 0.0}, "same reward, 0.000"),
    "equal": ({"signal/active_fraction": 0.1, "success": 0.9}, "only 10%.*most are right.*training.group_size"),
    "dead": ({"reward/accuracy/mean": 0.3, "reward/accuracy/std": 0.0}, "'accuracy' has been 0.300"),
    "clip_saturated": ({"ratio/clip_fraction": 0.3}, "40% .*training.learning_rate"),  # 4 updates: .3 x 4/3
    "clip_idle": ({"trust_region/acted": 0.0}, "10 steps of 4 optimizer steps.*objective.trust_region.low"),
    "tiny": ({"gradient_norm": 1e-9}, "1.0e-09.*training.learning_rate"),
}


@pytest.mark.parametrize(
    "change",
    [
        {"reward/accuracy/parsed/mean": 1.0, "reward/accuracy/parsed/std": 0.0},  # a part, which no `rewards` holds
        {"reward/format/mean": 1.0, "reward/format/std": 0.0},  # met by all: it has done its work
    ],
)
def test_what_is_constant_because_it_is_met_is_no_finding(change):
    assert diagnose([HEALTHY | change] * 10, "vlm") == {}


def test_one_step_without_a_signal_is_no_finding():
    poor = HEALTHY | {"signal/active_fraction": 0.0}
    assert diagnose([HEALTHY] * 9 + [poor], "vlm") == {} and diagnose([poor], "vlm") == {}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_number_and_its_knob(name):
    change, sentence = FAULTS[name]
    found = diagnose([HEALTHY | change] * 10, "vlm")
    assert list(found) == [name]
    assert re.search(sentence, found[name])


@pytest.mark.parametrize("modality", ["vlm", "video", "masked", "flow"])
def test_a_healthy_run_is_not_ill(modality):
    assert diagnose([HEALTHY] * WINDOW, modality) == {}
    assert diagnose([], modality) == {}
    assert diagnose([{"reward/mean": 0.1}], modality) == {}, "what a metric does not say is no fault"


def test_kl_that_runs_off_is_seen_where_it_grew():
    steady = [HEALTHY | {"regularizer/kl": 0.6}] * 10
    growing = [HEALTHY | {"regularizer/kl": value} for value in (0.1, 0.1, 0.1, 0.3, 0.6, 0.9, 1.2)]
    assert diagnose(steady, "vlm") == {}
    assert "from 0.10 to 0.90" in diagnose(growing, "vlm")["kl"]
    far = diagnose([HEALTHY | {"regularizer/kl": 1.6}] * 10, "vlm")["kl"]
    assert "regularizer/kl is 1.60 nats" in far, "long after it grew"
    assert diagnose([HEALTHY | {"regularizer/gaussian_kl": 1.6}] * 10, "flow") == {}, "a density has no level"
    assert "KL of 0.30 an action" in diagnose([HEALTHY | {"ratio/approx_kl": 0.3}] * 2, "flow")["kl"]
    assert diagnose([HEALTHY] * 3 + [HEALTHY | {"ratio/approx_kl": 0.3}], "flow") == {}, "one poor step is no finding"


def test_a_clip_is_saturated_by_the_steps_that_can_be_clipped():
    """With two optimizer steps half of the actions have ratio 1; with one there is nothing to clip."""
    assert (
        "24% of"
        in diagnose([HEALTHY | {"ratio/clip_fraction": 0.12, "updates/of_step": 2}] * 5, "vlm")["clip_saturated"]
    )
    assert diagnose([HEALTHY | {"ratio/clip_fraction": 0.12}] * 5, "vlm") == {}
    assert diagnose([HEALTHY | {"ratio/clip_fraction": 0.5, "updates/of_step": 1}] * 5, "vlm") == {}


def test_entropy_is_gone_where_a_tenth_is_left_and_only_of_tokens():
    fading = [HEALTHY | {"entropy/sampled": value} for value in (1.0, 1.0, 1.0, 0.5, 0.09, 0.08, 0.07)]
    assert "0.070 nats a token, 1.000" in diagnose(fading, "vlm")["entropy"]
    assert diagnose(fading, "flow") == {}, "of a density it says nothing"
    assert diagnose(fading[:-1], "vlm") == {}, "three steps must agree"


def test_what_follows_from_a_fault_is_not_told_beside_it():
    mute = {"reward/std": 0.0, "reward/mean": 0.0, "signal/active_fraction": 0.0, "gradient_norm": 0.0, "success": 0.0}
    cut = HEALTHY | mute | {"length/truncated_fraction": 1.0, "reward/format/mean": 0.0}
    assert list(diagnose([cut] * 10, "vlm")) == ["truncated"]
    assert list(diagnose([cut] * 10, "flow")) == ["constant"]
    flat = HEALTHY | {"signal/active_fraction": 0.0, "gradient_norm": 0.0, "trust_region/acted": 0.0}
    assert list(diagnose([flat] * 10, "vlm")) == ["equal"], "no rate makes a gradient of nothing larger"


def test_solved_data_is_not_called_a_broken_reward():
    solved = HEALTHY | {"reward/std": 0.0, "reward/mean": 1.0, "success": 1.0, "signal/active_fraction": 0.0}
    assert "all are right" in diagnose([solved] * 2, "vlm")["constant"]


def test_a_doctor_goes_on_where_it_was_saved():
    rows = [HEALTHY | {"trust_region/acted": 0.0}] * 12
    whole, first = Doctor("vlm"), Doctor("vlm")
    told = [whole(row) for row in rows]
    for row in rows[:6]:
        first(row)
    second = Doctor("vlm")
    second.load_state_dict(first.state_dict())
    assert told[6:] == [second(row) for row in rows[6:]]
    assert "clip_idle" in told[9] and not told[8], "it takes ten steps to know"


def test_spells_are_runs_of_steps():
    rows = [{"step": s, "diagnosis": {"kl": f"at {s}"}} if s in (2, 3, 5) else {"step": s} for s in range(1, 6)]
    assert spells(rows) == [("kl", 2, 3, "at 3"), ("kl", 5, 5, "at 5")]


def test_every_rule_names_a_key_or_a_command_and_explains_rules_that_exist():
    names = {rule.name for rule in RULES}
    assert len(names) == len(RULES)
    for rule in RULES:
        assert set(rule.explains) <= names
        assert any(word in rule.knob for word in ("training.", "data.", "objective.", "`rewards`", "reward_run."))
