"""Labels that an ensemble doubts, in DPO's loss: worked numbers of each treatment."""

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.score_objectives.pairs import dpo
from mmrl.objective.score_objectives.strength import doubted, secrets_of_rlhf_ii
from mmrl.record import Batch

NAN = float("nan")


def batch(*strengths: float, margin: float = 1.0) -> Batch:
    """A pair a strength, chosen first."""
    rows = 2 * len(strengths)
    strength = torch.tensor([v for s in strengths for v in (s, -s)], dtype=torch.float64)
    return Batch(
        mask=torch.ones(rows, 1, dtype=torch.bool), old_log_probs=torch.zeros(rows, 1, dtype=torch.float64),
        group=torch.arange(rows) // 2, reward=torch.tensor([1.0, 0] * len(strengths), dtype=torch.float64),
        columns={"preferred": torch.tensor([1.0, 0] * len(strengths)), "preference_strength": strength,
                 "preference_margin": torch.where(strength.isnan(), NAN, strength.sign() * margin)},
    )  # fmt: skip


def value(given: Batch, scores, **parameters):
    s = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    found = secrets_of_rlhf_ii(s, given, **parameters)
    return found.item(), torch.autograd.grad(found, s)[0].tolist()


def log_sigmoid(z: float) -> float:
    return -math.log(1 + math.exp(-z))


def test_a_sure_label_is_dpo():
    sure = batch(3.0, 2.0)
    scores = [1.0, -1, 0.5, 2]
    assert value(sure, scores)[0] == pytest.approx(dpo(torch.tensor(scores, dtype=torch.float64), sure).item())


def test_a_label_that_all_contradict_is_turned_around():
    turned, gradient = value(batch(-3.0), [1.0, -1], beta=0.5)
    assert turned == pytest.approx(log_sigmoid(-1.0)) and gradient[0] < 0 < gradient[1]
    assert value(batch(-3.0), [1.0, -1], beta=0.5, wrong="keep")[0] == pytest.approx(log_sigmoid(1.0))


def test_an_unsure_label_is_softened():
    soft, _ = value(batch(0.5), [1.0, -1], beta=0.5)
    assert soft == pytest.approx(0.8 * log_sigmoid(1.0) + 0.2 * log_sigmoid(-1.0))
    assert value(batch(0.5), [1.0, -1], beta=0.5, smoothing=0.0)[0] == pytest.approx(log_sigmoid(1.0))


def test_dropped_pairs_and_those_without_a_strength_teach_nothing():
    both, gradient = value(batch(0.5, 3.0), [1.0, -1, 1, -1], beta=0.5, unsure="drop")
    assert both == pytest.approx(log_sigmoid(1.0) / 2) and gradient[:2] == [0, 0], "the prompt stays in the denominator"
    assert value(batch(NAN), [1.0, -1]) == (0, [0, 0])
    assert value(batch(NAN, 3.0), [1.0, -1, 1, -1], beta=0.5) == (both, gradient), "no NaN through what is left out"


def test_the_margin_asks_more_of_what_the_ensemble_is_sure_of_whichever_side():
    for strength, sign in ((3.0, 1), (-3.0, -1)):
        asked, _ = value(batch(strength, margin=2.0), [1.0, -1], beta=0.5, margin=0.25)
        assert asked == pytest.approx(log_sigmoid(sign * 1.0 - 0.5))


def test_the_bound_itself_is_sure():
    wrong, unsure = doubted(torch.tensor([-2.0, -1, -0.99, 0, 0.99, 1, NAN]), 1.0)
    assert wrong.tolist() == [True, True, False, False, False, False, False]
    assert unsure.tolist() == [False, False, True, True, True, False, False]


def test_a_smoothing_that_turns_labels_around_is_refused():
    with pytest.raises(ConfigError, match=r"smoothing=0\.5"):
        value(batch(1.0), [0.0, 0], smoothing=0.5)
    with pytest.raises(ConfigError, match="'invert'; expected flip"):
        value(batch(1.0), [0.0, 0], wrong="invert")
