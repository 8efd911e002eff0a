"""A few trials of each kind; `make chaos` makes them all."""

import pytest

from tests.chaos import caches, configurations, disks, foreign, kills, media, ranks, rewards
from tests.chaos.trials import Ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    return Ground(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize(
    "trials",
    [
        lambda g: [kills.fresh(g, [27])],
        lambda g: [kills.going_back(g, [9])],
        lambda g: [disks.full(g, [33])],
        lambda g: [disks.cut(g, [40_000])],
        lambda g: foreign.prepared(g, range(3, 400, 110)),
    ],
    ids=["kill", "kill going back", "disk full", "write cut", "prepared by others"],
)
def test_a_run_survives(ground, trials):
    tallies = trials(ground)
    assert sum(t.trials for t in tallies) >= 1
    assert [problem for t in tallies for problem in t.lost] == []


@pytest.mark.parametrize("kind", ranks.kinds())
def test_ranks_end_together(ground, kind):
    (tally,) = ranks.fail(ground, 1, names=[kind])
    assert tally.trials == 1
    assert tally.lost == []


def test_configurations_are_refused_in_one_line():
    (tally,) = configurations.mutate(40)
    assert tally.trials >= 240
    assert tally.lost == []


def test_recipes_are_refused_in_one_line(tmp_path):
    (tally,) = configurations.mutate_recipes(tmp_path, 1)
    assert tally.trials >= 150
    assert tally.lost == []


def test_caches_give_way():
    (tally,) = caches.damaged(8)
    assert tally.trials >= 8
    assert tally.lost == []


def test_media_and_rows_are_read_or_refused_in_one_line(tmp_path):
    for tally in [*media.fuzz(tmp_path, 40), *media.clips(tmp_path / "clips", 25)]:
        assert tally.trials >= 25
        assert tally.lost == []


def test_rewards_misbehave(tmp_path):
    for tally in rewards.misbehave(tmp_path):
        assert tally.lost == []


def test_the_trials_can_fail(ground):
    """A run that ends otherwise is noticed."""
    other = ground.fresh("other", seed=1)
    from mmrl.pipelines.run import train
    from tests.chaos.trials import in_child

    assert in_child(lambda: train(other), ground.root / "other.log").status == 0
    assert ground.same_as_straight(other.directory) == "other metrics: steps [1, 2, 3]"
