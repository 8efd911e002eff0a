"""When a reward without truth has collapsed: by a few labels, or by answers that agree and shrink."""

import json

import pytest
import torch

from mmrl.rollout.collapse import Collapsed, CollapseStop, agreed
from tests.rollout.plans import rows, step

NONE = float("nan")


def seen(answers, length, success):
    batch = rows([0.0] * 4, [0, 0, 1, 1], columns={"answer": torch.tensor(answers, dtype=torch.float32)})
    batch.length = torch.tensor([length] * 4)
    batch.success = torch.tensor(success, dtype=torch.float64)
    return batch


def follow(strategy, *batches):
    for batch in batches:
        strategy.observe(batch, step())


LIVELY, SAME = [1, 2, 3, 4], [1, 1, 2, 2]


def test_answers_that_agree_and_shrink_stop_the_run():
    strategy = CollapseStop(window=2)
    follow(strategy, *[seen(LIVELY, 40, [NONE] * 4)] * 2, seen(SAME, 10, [NONE] * 4))
    with pytest.raises(Collapsed, match=r"answers of a group agree \(0.000 nats\) and shrank from 40 to 10"):
        follow(strategy, seen(SAME, 10, [NONE] * 4))


@pytest.mark.parametrize(("answers", "length"), [(SAME, 30), (LIVELY, 10)], ids=["long still", "lively still"])
def test_one_sign_alone_is_none(answers, length):
    follow(CollapseStop(window=2), *[seen(LIVELY, 40, [NONE] * 4)] * 2, *[seen(answers, length, [NONE] * 4)] * 5)


def test_one_labelled_group_that_is_wrong_is_no_collapse():
    follow(CollapseStop(window=2), *[seen(LIVELY, 40, [0, 0, NONE, NONE])] * 4)


def test_labels_decide_where_there_are_enough():
    strategy = CollapseStop(window=2, labels=2)
    follow(strategy, *[seen(SAME, 40, [1, 1, NONE, NONE])] * 2, *[seen(SAME, 1, [1, 1, NONE, NONE])] * 3)
    with pytest.raises(Collapsed, match=r"right in 0.0% of the labelled groups"):
        follow(strategy, *[seen(LIVELY, 40, [0, 0, NONE, NONE])] * 2)


def test_the_most_frequent_answer_is_what_counts():
    batch = rows([0.0] * 4, [0] * 4, columns={"answer": torch.tensor([7.0, 7, 9, 0])})
    batch.success = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    assert agreed(batch, torch.tensor([0.5, 0.5, 0.25, 0]), batch["answer"] != 0) == (1, 1)


def test_a_step_without_a_readable_answer_is_said_once(capsys):
    follow(CollapseStop(window=2), *[seen([0] * 4, 40, [1.0] * 4)] * 2)
    assert capsys.readouterr().err.count("reads no answer of this step") == 1


def test_it_goes_on_after_a_save():
    strategy, again = CollapseStop(window=2), CollapseStop(window=2)
    follow(strategy, *[seen(LIVELY, 40, [NONE] * 4)] * 2, seen(SAME, 10, [NONE] * 4))
    again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    with pytest.raises(Collapsed):
        follow(again, seen(SAME, 10, [NONE] * 4))
