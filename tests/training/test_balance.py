"""Which rank holds which group."""

from hypothesis import given
from hypothesis import strategies as st

from mmrl.training.balance import Balance


def loads(balance: Balance, rows: list[int], tokens: dict[int, float]) -> list[float]:
    ranks = balance.places(rows)
    return [sum(tokens[r] for r, rank in zip(rows, ranks, strict=True) if rank == each) for each in range(2)]


def test_what_is_not_known_goes_in_turn():
    assert Balance(2).places([5, 6, 7, 8]) == [0, 1, 0, 1]
    assert Balance(3).places([5, 6], first=2) == [2, 0]


def test_a_long_clip_stands_beside_short_ones():
    """10, 9, 2, 1: in turn a rank has 12 and the other 10; 10 with 1 beside 9 with 2 is 11 each."""
    tokens = {0: 10.0, 1: 9.0, 2: 2.0, 3: 1.0}
    balance = Balance(2)
    balance.learn(tokens)
    assert loads(balance, [0, 1, 2, 3], tokens) == [11, 11]
    assert loads(Balance(2, enabled=False), [0, 1, 2, 3], tokens) == [12, 10]


def test_rows_never_seen_count_as_the_mean():
    balance = Balance(2)
    balance.learn({0: 100.0, 1: 2.0})
    assert balance.places([9, 0, 8, 1]) == [1, 0, 1, 0]  # 100; 51 and 51; 2


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=24), st.integers(1, 5), st.integers(0, 4))
def test_each_rank_holds_as_many_groups_as_in_turn(sizes, world, first):
    """Ranks must not be left without a group, and micro-batches of a step are as many as before."""
    balance, rows = Balance(world), list(range(len(sizes)))
    turns = balance.places(rows, first % world)
    balance.learn({row: float(size) for row, size in enumerate(sizes)})
    places = balance.places(rows, first % world)
    assert sorted(places) == sorted(turns)


def test_a_resumed_run_knows_what_it_knew():
    balance, again = Balance(2), Balance(2)
    balance.learn({3: 5.0, 4: 1.0, 5: 1.0})
    again.load_state_dict(balance.state_dict())
    assert again.places([4, 5, 3]) == balance.places([4, 5, 3]) == [1, 0, 0]  # in turn: two here, one there
