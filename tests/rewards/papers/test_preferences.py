"""Win rates inside a group: the paper's numbers, any judge, a share of the pairs."""

import random
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
from PIL import Image

from mmrl.errors import RewardError
from mmrl.rewards import registry
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.papers.preferences import bradley_terry, chosen_pairs, pref_grpo, win_rates
from mmrl.rewards.registry import registered
from tests.rewards.helpers import prompts

JUDGE = """
CALLS = []

def by_red(first, second):
    CALLS.append(len(first))
    return [float(a.getpixel((0, 0))[0] > b.getpixel((0, 0))[0]) for a, b in zip(first, second)]

def shrugs(first, second):
    return [None] * len(first)

def by_column(first, second, caption):
    return [float(word == "first") for word in caption]
"""


@pytest.fixture
def judge(tmp_path):
    file = tmp_path / "my_judge.py"
    file.write_text(JUDGE)
    return lambda name: f"{file}:{name}"


def reds(*values):
    return [Image.new("RGB", (4, 4), (value, 0, 0)) for value in values]


def scores(completions, ids, **options):
    return [each["score"] for each in pref_grpo(completions, ids, **options)]


def test_the_papers_numbers():
    """Pointwise scores .7012, .7013, .7015, .7010 with a judge that cannot tell the first two apart."""
    wins = {(0, 1): 0.5, (0, 2): 0.0, (0, 3): 1.0, (1, 2): 0.0, (1, 3): 1.0, (2, 3): 1.0}
    rates = win_rates(4, wins)
    assert rates == [0.5, 0.5, 1, 0]
    spread = pstdev(rates)
    assert [round((r - fmean(rates)) / spread, 3) for r in rates] == [0, 0, 1.414, -1.414]
    for size, expected in ((4, 0.3727), (8, 0.3273)):
        order = {(i, j): float(i > j) for i in range(size) for j in range(i)}
        assert pstdev(win_rates(size, order)) == pytest.approx(expected, abs=1e-4)


def test_groups_are_judged_apart_in_one_call(judge):
    found = scores(reds(10, 200, 30, 90, 20), ["a", "b", "a", "b", "a"], judge=judge("by_red"))
    assert found == [0, 1, 1, 0, 0.5]
    told = pref_grpo(reds(1, 2, 3), ["a"] * 3, judge=judge("by_red"))
    assert told[0]["judged"] == 1 and told[0]["ties"] == 0


def test_a_judge_that_cannot_say_ties_and_its_columns_are_its_own(judge):
    assert scores(reds(1, 2, 3), ["a"] * 3, judge=judge("shrugs")) == [0.5] * 3
    assert sum(scores(reds(1, 2), ["a"] * 2, judge=judge("by_column"), caption=["first", "first"])) == 1
    with pytest.raises(RewardError, match="reads column 'caption'"):
        scores(reds(1, 2), ["a"] * 2, judge=judge("by_column"))


def test_a_reward_of_single_outputs_judges_by_its_scores():
    pictures, color = reds(255, 0, 255), ["red"] * 3
    assert scores(pictures, ["a"] * 3, judge="color_share", color=color) == [0.75, 0, 0.75]
    soft = scores(pictures, ["a"] * 3, judge="color_share", color=color, scale=1.0)
    p = 1 / (1 + 2.718281828**-1)
    assert soft == pytest.approx([(0.5 + p) / 2, 1 - p, (0.5 + p) / 2])


def test_a_judge_that_reads_prompts_first_gets_them(monkeypatch):
    """As clip_score, pickscore and hpsv2 do; through the panel, which gives what a reward names."""

    def prompted(prompts, completions):
        return [float(len(p) == c) for p, c in zip(prompts, completions, strict=True)]

    monkeypatch.setitem(registry._REGISTRY, "prompted", replace(registered()["color_share"], function=prompted))
    assert scores([1, 2, 1], ["a"] * 3, judge="prompted", prompts=["x"] * 3) == [0.75, 0, 0.75]


def test_a_share_of_the_pairs_keeps_the_order_that_all_would_give():
    order = random.Random(3).sample(range(12), 12)
    for share in (0.3, 0.5):
        pairs = chosen_pairs(12, share, random.Random(1))
        assert len(pairs) == max(12, round(share * 66)) and len({tuple(sorted(p)) for p in pairs}) == len(pairs)
        assert {i for pair in pairs for i in pair} == set(range(12)), "each is compared"
        rates = bradley_terry(12, {(i, j): float(order[i] > order[j]) for i, j in pairs})
        assert rank_correlation(rates, order) > 0.75
    everything = chosen_pairs(5, 1.0, random.Random(0))
    assert len(everything) == 10


def test_bradley_terry_by_hand():
    """Two outputs, one win, and half a win and half a loss each against strength 1: q = 1 / p, and wins are as many as
    expected, 1.5 = p / (1 + p) + p^2 / (1 + p^2), whose root is p = 2.1304."""
    rates = bradley_terry(2, {(0, 1): 1.0})
    p = (rates[0] / rates[1]) ** 0.5
    assert p == pytest.approx(2.1304, abs=1e-4) and p / (1 + p) + p**2 / (1 + p**2) == pytest.approx(1.5)
    assert sum(rates) == pytest.approx(1)
    assert bradley_terry(3, {(0, 1): 0.5, (1, 2): 0.5, (0, 2): 0.5}) == pytest.approx([0.5] * 3)


def rank_correlation(a, b):
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def test_what_cannot_work_is_refused_before_training(judge):
    for options, said in (
        ({}, "name who judges"), ({"judge": "color_shar"}, "neither"),
        ({"judge": judge("by_red"), "share": 0.0}, "share=0"),
    ):  # fmt: skip
        with RewardPanel([{"name": "pref_grpo", "options": options}]) as panel, pytest.raises(RewardError, match=said):
            panel.check(prompts())
    with pytest.raises(RewardError, match="one output"):
        scores(reds(1), ["a"], judge=judge("by_red"))
