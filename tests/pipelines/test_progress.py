"""The live view: speed, what is left, one answer, and what is wrong for as long as it is."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mmrl.pipelines.progress import Live, lasting, sample_line, speed
from mmrl.training.glossary import explain
from mmrl.training.trackers import Completion
from mmrl.training.tracking import read_metrics

STEP = {"unscored": {}, "reward/mean": 0.25, "success": 0.5, "seconds/rollout": 3.0, "seconds/update": 1.0}


@pytest.fixture
def live():
    printed = StringIO()
    view = Live(40, Console(file=printed, width=300))
    return view, lambda: printed.getvalue().splitlines()


def test_a_log_has_seconds_a_step_and_what_is_left(live):
    view, lines = live
    view(4, STEP)
    assert lines() == ["step 4 of 40: reward 0.250  success 0.500  4 s a step, 2 min left"]


def test_one_slow_step_does_not_mislead():
    assert speed([4, 4, 400, 4, 4], 10) == "4 s a step, 40 s left"
    assert [lasting(s) for s in (42, 400, 7200, 300_000)] == ["42 s", "7 min", "2.0 h", "3.5 days"]


def test_what_is_wrong_is_said_again_while_it_lasts_and_when_it_is_over(live):
    view, lines = live
    for step in range(1, 13):
        view(step, STEP | {"diagnosis": {"kl": "KL runs off"}})
    for step in range(13, 19):
        view(step, STEP)
    assert [line for line in lines() if "kl" in line.lower()] == [
        "step 1: KL runs off",
        "step 11: KL runs off (since step 1)",
        "step 17: no longer so since step 13: kl",
    ]


def test_what_comes_and_goes_is_one_finding(live):
    view, lines = live
    for step in range(1, 16):
        view(step, STEP | ({"diagnosis": {"kl": f"KL at {step}"}} if step % 3 == 1 else {}))
    assert [line for line in lines() if "KL" in line] == ["step 1: KL at 1", "step 13: KL at 13 (since step 1)"]
    assert not any("no longer" in line for line in lines())


def test_causes_of_unscored_rollouts_are_not_said_every_step(live):
    view, lines = live
    for step in range(1, 13):
        view(step, STEP | {"unscored": {"timeout": 2} | ({"nan": 1} if step == 4 else {})})
    assert [line.partition(": ")[2] for line in lines() if "unscored" in line] == [
        "unscored rollouts: timeout (2)",
        "unscored rollouts: timeout (2), nan (1)",
    ]


def completion(group: int, reward: float | None, output: str, **more) -> Completion:
    given = {"solution": "3", "finish": "stop", "images": [], "films": [], "sounds": []} | more
    return Completion("How\nmany?", output, reward, {}, group=group, **given)


def test_the_sample_is_the_best_answer_of_a_group_that_differs():
    rows = [completion(0, 1.0, "a"), completion(0, 1.0, "b"), completion(1, 0.0, "c"), completion(1, 0.5, "d\nd")]
    assert sample_line(7, rows, Path()) == "step 7, sample (reward 0.500): How many? -> d d [solution: 3]"
    cut = [completion(0, None, "x" * 1000, finish="length")]
    line = sample_line(7, cut, Path())
    assert "(reward unscored, cut at the limit)" in line and "x ... x" in line and len(line) < 400
    film = [completion(0, 0.1, "", films=[Path("output-0000.mp4")], solution="")]
    assert sample_line(7, film, Path("step-7")).endswith("-> step-7/output-0000.mp4")


def test_a_run_prints_an_answer_its_speed_and_every_number_is_in_the_glossary(trained):
    _, run, printed = trained
    assert "step 1, sample (reward " in printed and " s a step, " in printed
    rows = read_metrics(run / "metrics.jsonl")
    assert [name for row in rows for name in row if explain(name) is None] == []
