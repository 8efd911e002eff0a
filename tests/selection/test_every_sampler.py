"""What holds for every sampler that ships: rows of the data set, the same again under a key, and after a save."""

import pytest

from mmrl.errors import ConfigError, DataError
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.prompts import introduce, take_up
from mmrl.stages import Bound, registered
from tests.selection.helpers import groups, solved

SIZE, COUNT = 12, 4
PROMPTS = [Prompt(f"p{i}", [], columns={"source": "ab"[i % 2], "labelled": i % 3 > 0}) for i in range(SIZE)]
SETTINGS = {
    "1_shot_rlvr": {"pilot": 8, "keep": 2},
    "medvlthinker": {"low": 2, "high": 14},
    "drive": {"hard_from": 6},
    "sws": {"pilot": 8},
    "medssr": {"steps": 5},
}
NAMES = [spec.name for spec in registered("prompts")]


def opened(name: str):
    sampler = Bound.of("prompts", {"name": name, **SETTINGS.get(name, {})}).state
    introduce(PROMPTS, sampler)
    return sampler


def trained(sampler, steps: range) -> list[list[int]]:
    """Row i is solved i of 12 times, a little more often with each step; what was asked, step by step."""
    asked = []
    for step in steps:
        indices = sampler.select(COUNT, SIZE, Key(0, step))
        sampler.observe(indices, groups(*[solved(min(8, (i * 8) // SIZE + step // 8)) for i in indices], step=step))
        asked.append(indices)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_rows_of_the_data_set_and_repeats_itself_under_a_key(name):
    first, second = (trained(opened(name), range(20)) for _ in range(2))
    assert first == second
    assert all(len(each) == COUNT and all(0 <= i < SIZE for i in each) for each in first)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_may_draw_again_and_fewer(name):
    """As strategies do that ask for new prompts; what came of all is told once, at the end of the step."""
    sampler = opened(name)
    for step in range(20):
        indices = [i for count in (COUNT, 1) for i in sampler.select(count, SIZE, Key(0, step))]
        assert len(indices) == COUNT + 1 and all(0 <= i < SIZE for i in indices)
        sampler.observe(indices, groups(*[solved(min(8, (i * 8) // SIZE + step // 8)) for i in indices], step=step))
    if name == "medvlthinker":
        assert sampler.counts.keys() == set(range(SIZE)), "no row is lost where the pass ends within a step"


@pytest.mark.parametrize("steps", [0, 3, 7, 13])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on_is_one_that_never_stopped(name, steps):
    import json

    whole, again = opened(name), opened(name)
    trained(whole, range(steps))
    again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert trained(again, range(steps, 20)) == trained(whole, range(steps, 20))


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_that_shrank_is_refused_where_prompts_are_remembered(name, capsys):
    """Drive, MedVLThinker and SwS would ask for a row that is gone."""
    whole = opened(name)
    trained(whole, range(13))
    state = {"sampler": whole.state_dict(), "rows": SIZE}
    if name == "shuffled":
        take_up(opened(name), state, 3)
    else:
        with pytest.raises(DataError, match=f"had {SIZE} rows when this run was saved, and has 3 now"):
            take_up(opened(name), state, 3)
    take_up(opened(name), state, SIZE + 1)
    assert f"has {SIZE + 1} now: prompts are known by their place" in capsys.readouterr().err
    take_up(opened(name), state, SIZE)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_looking_ahead_takes_nothing_and_tells_what_comes(name):
    sampler = opened(name)
    if not hasattr(sampler, "coming"):
        pytest.skip("it does not say what comes")
    for step in range(20):
        trained(sampler, range(step, step + 1))
        coming = sampler.coming(COUNT, SIZE, Key(0, step + 1))
        assert coming == sampler.coming(COUNT, SIZE, Key(0, step + 1))
        assert coming == sampler.select(COUNT, SIZE, Key(0, step + 1))


TRACKING = [name for name in NAMES if name not in ("shuffled", "modomodo", "medssr", "drive")]


@pytest.mark.parametrize("name", TRACKING)
def test_what_is_no_success_rate_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"prompts '{name}' tracks a success rate.*got \[-1, 2\]"):
        opened(name).observe([0], groups([-1.0, 2.0]))


@pytest.mark.parametrize("name", [*TRACKING, "drive"])
def test_groups_of_no_row_and_answers_without_a_score_are_left_out(name):
    seen, unseen = opened(name), opened(name)
    seen.observe([None, 3], groups(solved(4), [float("nan")] * 8))
    assert seen.state_dict() == unseen.state_dict()
