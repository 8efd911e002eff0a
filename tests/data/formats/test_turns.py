"""Conversations of odd shapes: read by a rule, or refused in one line that names the turn; never silently changed."""

import pytest

from mmrl.data.check import check_dataset
from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown

HUMAN, GPT, SYSTEM, TOOL = "human", "gpt", "system", "observation"


def row(*said: tuple[str, object], **columns) -> dict:
    return {"conversations": [{"from": who, "value": value} for who, value in said], **columns}


ONE, TWO = {"image": "images/red.png"}, {"images": ["images/red.png", "images/blue.png"]}
ASKED, ANSWERED = (HUMAN, "<image>Which?"), (GPT, "red")
REFUSED = {
    "message 1 is an answer before any question": row((GPT, "Hi"), ASKED, **ONE),
    "message 1 is an answer before any": row((GPT, "Hi"), ASKED, ANSWERED, **ONE),
    "message 2 is an answer before any": row((SYSTEM, "x"), (GPT, "Hi"), ASKED, ANSWERED, **ONE),
    "holds no question, only an answer": row(ANSWERED),
    "the last message is by 'assistant'": row(ASKED, ANSWERED, (GPT, "blue"), **ONE),
    "messages 2 and 3 are two answers in a row": row(ASKED, ANSWERED, (GPT, "no"), (HUMAN, "Sure?"), **ONE),
    "message 2 is by 'system', after others": row(ASKED, (SYSTEM, "Be short"), ANSWERED, **ONE),
    "message 3 is by 'system', after others": row(ASKED, ANSWERED, (SYSTEM, "Be short"), **ONE),
    "is empty": row((HUMAN, ""), ANSWERED),
    "message 1 is empty": row((HUMAN, " "), (GPT, "Hi"), (HUMAN, "Which?"), ANSWERED),
    "message 2 is empty": row((HUMAN, "Hi"), (GPT, ""), (HUMAN, "Which?"), ANSWERED),
    "the last answer is blank": row(ASKED, (GPT, " "), **ONE),
    "expected a content of text or parts, got NoneType": row(ASKED, (GPT, None), **ONE),
    r"2 image place\(s\) in the messages, but 1 image": row((HUMAN, "<image><image>Which?"), ANSWERED, **ONE),
    r"1 image place\(s\) in the messages, but 2 image": row(ASKED, ANSWERED, **TWO),
    r"1 image place\(s\) in the messages, but 0 image": row(ASKED, ANSWERED),
    r"1 video place\(s\) in the messages, but 0 video": row((HUMAN, "<video>Which?"), ANSWERED, **ONE),
    "<image> stands in a message by 'assistant'": row((HUMAN, "Which?"), (GPT, "<image>red"), **ONE),
    "<image> stands in a message by 'system'": row((SYSTEM, "<image>"), (HUMAN, "Which?"), ANSWERED, **ONE),
    "but the row has a solution of its own": row(ASKED, ANSWERED, **ONE, solution="blue"),
    "column 'answer': holds 'blue', but the messages end with the answer 'red'": row(
        ASKED, ANSWERED, **ONE, answer="blue"
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refused_by_training_and_by_check_alike(folder, said):
    with pytest.raises(DataError, match=said) as e:
        opened(folder, REFUSED[said])
    assert "\n" not in str(e.value)
    [problem] = check_dataset(folder / "rows.jsonl").problems
    assert problem.message in str(e.value)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (row((HUMAN, "<image>Look."), (HUMAN, "Which?"), ANSWERED, **ONE),
         Shown("<image>Look.\nWhich?", [(56, 56)], [], "red")),
        (row(ASKED, ANSWERED, (HUMAN, "Sure?"), **ONE, solution="yes"),
         Shown("<image>Which?\nred\nSure?", [(56, 56)], [], "yes")),
        (row((HUMAN, "Which?"), ANSWERED, **ONE), Shown("<image>Which?", [(56, 56)], [], "red")),
        (row((HUMAN, "Which?"), (GPT, "\\<image> is a tag")), Shown("Which?", [], [], "<image> is a tag")),
        (row(ASKED, (GPT, "zoom"), (TOOL, "<image>"), ANSWERED, **TWO),
         Shown("<image>Which?\nzoom\n<image>", [(56, 56), (64, 32)], [], "red")),
        (row(ASKED, (GPT, "It is warm. <answer>red</answer>"), **ONE, answer="red"),
         Shown("<image>Which?", [(56, 56)], [], "It is warm. <answer>red</answer>")),
        (row(ASKED, ANSWERED, **ONE, solution="<answer>red</answer>"), Shown("<image>Which?", [(56, 56)], [], "red")),
        (row((SYSTEM, ""), ASKED, ANSWERED, **ONE), Shown("\n<image>Which?", [(56, 56)], [], "red")),
    ],
)  # fmt: skip
def test_read(folder, asked, expected):
    assert shown(opened(folder, asked)) == [expected]


def test_a_completion_is_one_answer(folder):
    asked = {"prompt": [{"role": "user", "content": "Which?"}]}
    for completion in ([], [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "a"}] * 2):
        with pytest.raises(DataError, match="column 'completion': expected one message by 'assistant'"):
            opened(folder, {**asked, "completion": completion})
