"""The search of ESSA: ranks, a bowl, and adapters taken apart and put together."""

import pytest
import torch
from torch import nn

from mmrl.errors import ConfigError
from mmrl.weights.essa import SingularValues
from mmrl.weights.evolution import Search, centred_ranks


def searched(worth, search, generations, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(generations):
        points = search.ask(generator)
        search.tell(points, torch.tensor([float(worth(p)) for p in points]))
    return search


def test_ranks_are_centred_and_ties_share_theirs():
    ranks = centred_ranks(torch.tensor([3.0, 9.0, 3.0, -1e9]))
    assert ranks.tolist() == pytest.approx([0.0, 0.5, 0.0, -0.5]) and ranks.sum() == 0
    assert not centred_ranks(torch.zeros(5)).any()
    with pytest.raises(ConfigError, match="1 unscored"):
        centred_ranks(torch.tensor([1.0, float("nan")]))


def test_the_top_of_a_bowl_is_found():
    goal = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    search = searched(lambda x: -((x - goal) ** 2).sum(), Search(torch.zeros(5), 0.5, 12), 200)
    assert (search.mean - goal).norm() < 1e-2 and search.sigma < 0.1


def test_a_stretched_bowl_too():
    """Curvatures of 1 and 1e4: without a spread of its own for each coordinate the search would crawl."""
    scale = torch.tensor([1.0, 100.0], dtype=torch.float64)
    search = searched(lambda x: -((scale * (x - 1)) ** 2).sum(), Search(torch.zeros(2), 0.3, 12), 200)
    assert ((search.mean - 1) * scale).norm() < 1e-2 and search.spread[0] > search.spread[1]


def test_no_signal_no_direction():
    """Values that say nothing about the points leave the mean within a few steps of where it was."""
    search = searched(lambda x: 1.0, Search(torch.zeros(4), 0.01, 8), 5)
    assert search.mean.norm() < 0.2


def test_it_goes_on_from_its_state():
    def worth(x):
        return -(x**2).sum()

    whole = searched(worth, Search(torch.ones(3), 0.3, 8), 4)
    resumed = Search.of_state(whole.state_dict())
    assert searched(worth, whole, 2, seed=5).mean.tolist() == searched(worth, resumed, 2, seed=5).mean.tolist()


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.lora_A = nn.Parameter(torch.randn(4, 9, generator=generator))
        self.lora_B = nn.Parameter(torch.randn(7, 4, generator=generator))


def test_adapters_come_back_as_they_were():
    model = Adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    values = SingularValues(model)
    assert values.described() == {"essa/factors": 2, "essa/numbers": 8}
    values.put(values.vector())
    assert max((p - before[n]).abs().max() for n, p in model.named_parameters()) < 1e-6
    values.put(2 * values.vector())
    assert torch.allclose(model.lora_A, 2 * before["lora_A"], atol=1e-5)


def test_only_the_leading_values_are_searched():
    model = Adapted()
    values = SingularValues(model, share=0.25)
    last = torch.linalg.svdvals(model.lora_A.detach())[1:]
    values.put(torch.tensor([100.0, 100.0]))
    found = torch.linalg.svdvals(model.lora_A.detach())
    assert found[0] == pytest.approx(100, rel=1e-5) and torch.allclose(found[1:], last, atol=1e-4)


def test_a_fresh_adapter_has_nothing_to_search():
    model = Adapted()
    nn.init.zeros_(model.lora_B)
    with pytest.raises(ConfigError, match="1 of 2 LoRA factors are zero"):
        SingularValues(model)
    with pytest.raises(ConfigError, match="trains none"):
        SingularValues(nn.Linear(2, 2))
