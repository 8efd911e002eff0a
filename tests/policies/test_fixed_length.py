"""Rows of a fixed length: padding, members of requests, and draws from the cumulative probability."""

import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.policies.fixed_length import asked, inverse_cdf, left_padded
from mmrl.record import Prompt, Request


def test_ids_are_padded_on_the_left():
    ids, real = left_padded([torch.tensor([5, 6, 7]), torch.tensor([8])], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and real.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_members_go_on_from_the_first_and_prompts_stand_once():
    one, two = (Prompt(name, [{"role": "user", "content": name}]) for name in ("one", "two"))
    requests = [Request(one, 2, group=0), Request(two, 1, group=1), Request(one, 1, group=0, first_member=2)]
    prompts, places, members = asked(requests, "these write whole rows")
    assert [p.id for p in prompts] == ["one", "two"] and places == {"one": 0, "two": 1}
    assert [(r.prompt.id, m) for r, m in members] == [("one", 0), ("one", 1), ("two", 0), ("one", 2)]
    with pytest.raises(PolicyError, match="these write whole rows and take no prefix and no start"):
        asked([Request(one, 1, group=0, prefix=torch.tensor([3]))], "these write whole rows")


def test_a_draw_is_where_the_cumulative_probability_passes():
    probabilities = torch.tensor([[[0.2, 0.5, 0.3]] * 4])
    uniform = torch.tensor([[0.1, 0.21, 0.69, 0.999]])
    assert inverse_cdf(probabilities, uniform).tolist() == [[0, 1, 1, 2]]
