"""Training refuses what `mmrl check` refuses, before anything is spent: both read truths by the same parsers."""

import pytest

from mmrl.data.check import check_dataset
from mmrl.data.datasets import open_dataset
from mmrl.errors import RewardError
from mmrl.pipelines.checking import judge_task
from mmrl.pipelines.run import check_prompts
from mmrl.rewards.panel import RewardPanel

GOOD = {"prompt": "How many?", "solution": "3", "task": "number"}
BAD = [
    {"solution": "5 or 6"},
    {"solution": "a bird", "task": "choice", "options": ["A cat", "A dog"]},
    {"solution": [2, 1], "task": "temporal"},
    {"solution": [1, 2, 3], "task": "box"},
    {"solution": "..."},
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_truth_far_into_the_data_is_refused_by_both(bad):
    rows = [{**GOOD, "id": str(i)} for i in range(40)]
    rows[37] = {**rows[37], **bad}
    report = check_dataset(rows, None, judge_task)
    assert report.bad_rows == 1 and report.problems[0].row == 37
    assert report.problems[0].column in ("solution", "options")
    with RewardPanel(["accuracy"]) as panel, pytest.raises(RewardError, match="prompt '37'") as refused:
        check_prompts(panel, open_dataset(rows), frozenset({"image"}))
    assert any("row 37" in note for note in refused.value.__notes__)


def test_good_rows_pass_both():
    rows = [{**GOOD, "id": str(i)} for i in range(40)]
    assert check_dataset(rows, None, judge_task).total == 0
    with RewardPanel(["accuracy"]) as panel:
        check_prompts(panel, open_dataset(rows), frozenset({"image"}))
