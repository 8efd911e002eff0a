"""TW-GRPO's inversion: which rows can be turned, what they ask then, and how many are."""

import pytest

from mmrl.record import Prompt
from mmrl.rollout.inversion import Inversion, others
from tests.rollout.plans import step

FOUR = ["red", "green", "blue", "grey"]


def row(**columns) -> Prompt:
    return Prompt("p", [{"role": "user", "content": "Which is it?"}], columns={"task": "choice", **columns})


@pytest.mark.parametrize(
    ("columns", "letters"),
    [
        ({"options": FOUR, "solution": "B"}, ["A", "C", "D"]),
        ({"options": FOUR, "solution": "(d)."}, ["A", "B", "C"]),
        ({"options": {"X": "1", "Y": "2", "Z": "3"}, "solution": "Y"}, ["X", "Z"]),
        ({"options": FOUR[:2], "solution": "A"}, None),
        ({"options": FOUR, "solution": "green"}, None),
        ({"options": FOUR, "solution": "E"}, None),
        ({"options": FOUR, "solution": "A", "task": "numeric"}, None),
        ({"solution": "A"}, None),
    ],
)
def test_the_complement_of_the_right_letter(columns, letters):
    assert others(row(**columns).columns) == letters


def test_a_turned_question_pays_for_every_wrong_option():
    strategy = Inversion(share=1.0)
    strategy.meet([row(options=FOUR, solution="B"), row(solution="7", task="numeric")])
    turned, plain = strategy.ask(step(size=4, prompts=2)).ask
    assert (turned.note, turned.trains, plain.note) == ("inverted", "shown", None)
    shown = strategy.shown(turned, row(options=FOUR, solution="B"), None)
    assert shown.columns["solution"] == "A, C, D" and shown.columns["task"] == "multi_choice"
    assert shown.columns["options"] == FOUR and "NOT" in shown.text and shown.id != "p"


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_about_a_share_of_the_questions_is_turned(share, low, high):
    strategy = Inversion(share=share)
    strategy.meet([row(options=FOUR, solution="A")] * 200)
    assert low <= sum(ask.note is not None for ask in strategy.ask(step(prompts=200)).ask) <= high
