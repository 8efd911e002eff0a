"""Shaping of Gazal-R1, Datarus-R1 and GenRec: worked numbers, limits, and what is left as it was."""

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.shaping.datarus import form_share
from mmrl.record import Batch
from mmrl.stages import Bound

NAN = float("nan")


def batch_of(reward, **fields) -> Batch:
    reward = torch.tensor(reward, dtype=torch.float64)
    for name in ("length", "success"):
        if name in fields:
            fields[name] = torch.tensor(fields[name], dtype=torch.float64)
    components = {name: torch.tensor(v, dtype=torch.float64) for name, v in fields.pop("components", {}).items()}
    mask = torch.ones(len(reward), 1, dtype=torch.bool)
    return Batch(mask=mask, old_log_probs=torch.zeros(mask.shape), reward=reward, components=components, **fields)


def shape(name: str, batch: Batch, **parameters) -> list[float]:
    return Bound.of("shaping", {"name": name, **parameters})(batch).tolist()


class TestCosineLength:
    def test_right_answers_lose_with_length_and_wrong_ones_gain(self):
        batch = batch_of([0.0] * 6, length=[0, 50, 100] * 2, success=[1, 1, 1, 0, 0, 0], max_length=100)
        assert shape("cosine_length", batch) == pytest.approx([1, 0.75, 0.5, -1, -0.75, -0.5])
        assert shape("cosine_length", batch, weight=0.0) == [0.0] * 6

    def test_a_quarter_of_the_way(self):
        batch = batch_of([1.0], length=[25], success=[1], max_length=100)
        assert shape("cosine_length", batch) == pytest.approx([1 + 0.5 + 0.25 * (1 + math.cos(math.pi / 4))])

    def test_beyond_the_limit_nothing_turns_around(self):
        batch = batch_of([0.0, 0.0], length=[150, 200], success=[1, 0])
        assert shape("cosine_length", batch, max_length=100) == pytest.approx([0.5, -0.5])

    def test_rows_that_nobody_judged_keep_their_reward(self):
        batch = batch_of([0.3, NAN], length=[1, 1], success=[NAN, 1], max_length=100)
        assert shape("cosine_length", batch) == pytest.approx([0.3, NAN], nan_ok=True)

    def test_what_would_pay_for_wrong_answers_is_refused(self):
        batch = batch_of([0.0], length=[1], success=[1], max_length=10)
        with pytest.raises(ConfigError, match="overlap"):
            shape("cosine_length", batch, wrong=(0.6, -0.5))
        with pytest.raises(ConfigError, match="no max_length"):
            shape("cosine_length", batch_of([0.0], length=[1], success=[1]))


class TestDatarus:
    def at(self, step, steps=5, **parameters):
        batch = batch_of([9.0, NAN], components={"format": [1.0, 1], "accuracy": [0.0, 0]}, step=step, steps=steps)
        return shape("datarus_r1", batch, **parameters)

    def test_form_gives_way_to_meaning_along_half_a_cosine(self):
        quarter = 0.2 + 0.6 * (1 + math.cos(math.pi / 4)) / 2
        assert [self.at(step)[0] for step in range(5)] == pytest.approx([0.8, quarter, 0.5, 1 - quarter, 0.2])
        assert math.isnan(self.at(0)[1]), "what was not scored stays so"

    def test_a_run_made_longer_goes_on_as_it_began_if_it_says_over_how_long(self):
        assert self.at(2, steps=50, over=5) == pytest.approx(self.at(2), nan_ok=True)
        assert self.at(2, steps=50)[0] > 0.79 and self.at(7, steps=50, over=5)[0] == pytest.approx(0.2)

    def test_a_run_of_one_step_and_a_schedule_that_stands_still(self):
        assert form_share(0, 1, 0.8, 0.2) == 0.8
        assert self.at(3, first=0.5, last=0.5)[0] == 0.5
        with pytest.raises(ConfigError, match="first=2"):
            self.at(0, first=2.0)


class TestGenRec:
    relevance = {"relevance": [1.0, 0.5, 0.4, 0.0, NAN], "clicks": [3.0, 2, 5, -1, 1]}

    def test_what_is_irrelevant_earns_nothing_however_it_is_liked(self):
        batch = batch_of([0.0] * 5, components=self.relevance)
        got = shape("genrec_grpo_sr", batch, dense="clicks")
        assert got == pytest.approx([3, 2, 0, -1, NAN], nan_ok=True), "and a bad one does not become better"

    def test_without_a_name_the_gate_stands_before_the_reward(self):
        batch = batch_of([0.9, NAN, 0.9, 0.2, 0.2], components=self.relevance)
        got = shape("genrec_grpo_sr", batch, least=0.45, closed=0.1)
        assert got == pytest.approx([0.9, NAN, 0.1, 0.1, NAN], nan_ok=True)

    def test_a_reward_cannot_be_its_own_gate(self):
        with pytest.raises(ConfigError, match="gate and reward at once"):
            shape("genrec_grpo_sr", batch_of([0.0] * 5, components=self.relevance), dense="relevance")
