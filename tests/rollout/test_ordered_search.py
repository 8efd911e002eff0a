"""The best prefixes go on: which they are, what they cost, and that a search of width and expansion 1 is none."""

import pytest
import torch

from mmrl.batch import Batch
from mmrl.errors import ConfigError
from mmrl.rollout.ordered_search import OrderedSearch
from tests.rollout.plans import step


def batch(rewards, lengths, owner=None, group=None):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    count = len(rewards)
    return Batch(
        mask, torch.zeros(mask.shape), reward=torch.tensor(rewards), group=torch.tensor(group or [0] * count),
        member=torch.arange(count), owner=None if owner is None else torch.tensor(owner), source=torch.zeros(count),
    )  # fmt: skip


def asked(search, rows, round):
    plan = search.join(rows, step(round))
    return [] if plan is None else [(a.count, a.group, a.start.member, a.start.action) for a in plan.ask]


def test_the_best_that_are_long_enough_go_on():
    """Of four rows the best ended too early and another has no reward: the two others, in order of reward."""
    search = OrderedSearch(segment=2, width=2, expand=3, rounds=1)
    rows = batch([0.9, 0.2, float("nan"), 0.5], [2, 6, 6, 6])
    assert asked(search, rows, 1) == [(2, 0, 3, 2), (2, 0, 1, 2)]
    assert asked(search, rows, 2) == [], "its rounds are over"


def test_a_prefix_goes_on_once():
    """Rows 0 and 2 share their first four actions: the next best prefix is row 1's, at the second segment."""
    search = OrderedSearch(segment=2, width=2, expand=2, rounds=2)
    first = batch([0.8, 0.1], [6, 6], owner=[[0] * 6, [1] * 6])
    assert asked(search, first, 1) == [(1, 0, 0, 2), (1, 0, 1, 2)]
    owner = [[0] * 6, [1] * 6, [0] * 4 + [2] * 2]
    assert asked(search, batch([0.8, 0.1, 0.9], [6] * 3, owner), 2) == [(1, 0, 2, 4), (1, 0, 1, 4)]


def test_what_the_verifier_is_asked():
    """A first round of width x expand, then width x (expand - 1) for each further segment of the output."""
    search, rows, judged = OrderedSearch(segment=2, width=2, expand=3, rounds=9), 6, 6
    for round in range(1, 9):
        owner = torch.arange(rows)[:, None].expand(rows, 8).tolist()
        new = sum(count for count, *_ in asked(search, batch(torch.rand(rows).tolist(), [8] * rows, owner), round))
        judged, rows = judged + new, rows + new
    assert judged == 2 * 3 + 3 * 2 * (3 - 1), "behind 2, 4 and 6 of 8 actions"


def test_one_end_a_prefix_is_plain_sampling():
    assert asked(OrderedSearch(segment=2, width=1, expand=1), batch([0.1, 0.5], [6, 6]), 1) == []


def test_what_searches_nothing_is_refused():
    with pytest.raises(ConfigError, match="width=0"):
        OrderedSearch(width=0)
