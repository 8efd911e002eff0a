"""Mixtures: a planted optimum is found again, and sources are drawn as weighed."""

import pytest
import torch

from mmrl.errors import ConfigError, DataError
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.mixtures import Mixture, best_mixture, fit_mixtures, on_simplex, predicted, seed_mixtures

OPTIMUM = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def test_seed_mixtures_are_mixtures():
    seeds = seed_mixtures(4)
    assert seeds.shape == (9, 4) and seeds.sum(1).tolist() == pytest.approx([1.0] * 9)


def test_a_planted_optimum_is_found_again():
    seeds = seed_mixtures(3)
    surrogate = fit_mixtures(seeds, 0.7 - ((seeds - OPTIMUM) ** 2).sum(1))
    assert (best_mixture(surrogate, 3) - OPTIMUM).abs().max() < 1e-3
    assert float(predicted(surrogate, OPTIMUM[None])) == pytest.approx(0.7, abs=1e-4)


def test_an_optimum_on_the_edge_is_found_too():
    seeds = seed_mixtures(3)
    best = best_mixture(fit_mixtures(seeds, seeds[:, 0] - 0.1 * seeds[:, 1]), 3)
    assert best.tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_projection_onto_the_simplex():
    points = torch.tensor([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [0.5, 0.5, 0.5], [-1.0, 0.2, 0.4]], dtype=torch.float64)
    expected = [[0.2, 0.3, 0.5], [1, 0, 0], [1 / 3] * 3, [0, 0.4, 0.6]]
    assert on_simplex(points).flatten().tolist() == pytest.approx([x for row in expected for x in row])


def met(**options) -> Mixture:
    sampler = Mixture(**options)
    sampler.meet([Prompt(f"p{i}", [], columns={"source": "chart" if i < 6 else "text"}) for i in range(10)])
    return sampler


def test_sources_are_drawn_as_weighed_and_each_is_shuffled_by_itself():
    sampler = met(weights={"chart": 3, "text": 1})
    drawn = [i for step in range(100) for i in sampler.select(8, 10, Key(0, step))]
    assert 0.7 < sum(i < 6 for i in drawn) / len(drawn) < 0.8
    text = [i for i in drawn if i >= 6]
    assert sorted(text[:4]) == [6, 7, 8, 9] and sorted(text[4:8]) == [6, 7, 8, 9]
    assert all(i < 6 for i in met(weights={"chart": 1}).select(20, 10, Key(0)))


def test_what_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="unknown source 'charts'; did you mean 'chart'"):
        met(weights={"charts": 1})
    with pytest.raises(DataError, match="reads its column 'kind'"):
        met(column="kind")
    with pytest.raises(ConfigError, match="expected 0 or more"):
        Mixture(weights={"a": -1, "b": 2})
