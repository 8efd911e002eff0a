"""Nulls: a row keeps the format its columns show, and a question or truth that is null is one line that names it."""

import json

import pytest

from mmrl.data.check import check_dataset
from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown

CHAT = [{"role": "user", "content": "Find x."}]
ASKED = {"prompt": CHAT, "data_source": "geo3k", "ability": "math"}
TURNS = [{"from": "human", "value": "x?"}, {"from": "gpt", "value": None}]
NO_TRUTH = {  # format: (row without a truth, the column that is named)
    "verl": (ASKED | {"reward_model": {"style": "rule", "ground_truth": None}}, "reward_model.ground_truth"),
    "easyr1": ({"problem": "x?", "answer": None}, "answer"),
    "easyvideor1": ({"problem": "x?", "answer": None, "problem_type": "math"}, "answer"),
    "mm_eureka": ({"message": json.dumps(CHAT), "answer": None}, "answer"),
    "mmk12": ({"question": "x?", "answer": None, "subject": None}, "answer"),
    "virl39k": ({"question": "x?", "answer": None, "qid": "q0"}, "answer"),
    "tinyllava_video": ({"problem": "x?", "video_filename": "videos/a.mp4", "solution": None}, "solution"),
    "swift": ({"query": "x?", "response": None}, "response"),
    "trl": ({"prompt": "x?", "completion": None}, "completion"),
    "mmrl": ({"prompt": "x?", "solution": None}, "solution"),
}
NO_QUESTION = {
    "problem": {"problem": None, "answer": "3"},
    "message": {"message": None, "answer": "3"},
    "question": {"question": None, "answer": "3", "subject": "math"},
    "conversations": {"conversations": None, "image": "images/red.png"},
    "messages": {"messages": None, "images": ["images/red.png"]},
    "query": {"query": None, "response": "3"},
    "prompt": {"prompt": None, "solution": "3"},
}


@pytest.mark.parametrize("name", NO_TRUTH)
def test_a_truth_that_is_null_in_all_rows_or_in_some_is_named(folder, name):
    row, column = NO_TRUTH[name]
    for rows in ([row], [{"prompt": "2 + 2?", "solution": "4"}, row]):
        data = opened(folder, *rows)
        assert list(data.formats)[-1] == name
        [problem] = check_dataset(data.source).problems
        assert str(problem).startswith(f"{data.source}, line {len(rows)}, column '{column}': is null, and a reward")


@pytest.mark.parametrize("column", NO_QUESTION)
def test_a_question_that_is_null_is_named(folder, column):
    with pytest.raises(DataError, match=f"line 1: column '{column}': is null; write the question"):
        opened(folder, NO_QUESTION[column])


def test_a_null_answer_among_the_turns_and_a_null_medium_are_named(folder):
    with pytest.raises(DataError, match="column 'conversations': expected a content of text or parts, got NoneType"):
        opened(folder, {"conversations": TURNS})
    typed = {"problem": "x?", "data_type": "image", "problem_type": "math", "solution": "3"}
    with pytest.raises(DataError, match="column 'path': is null, and data_type says that the row has images"):
        opened(folder, typed | {"path": None})
    with pytest.raises(DataError, match="column 'data_type': is 'image', but the row has no media"):
        opened(folder, {"answer": "3"} | typed | {"images": []})


def test_nulls_that_fill_the_columns_of_other_formats_change_nothing(folder):
    """What a columnar file makes of rows of several formats."""
    empty = {
        "problem": None,
        "answer": None,
        "reward_model": None,
        "messages": None,
        "path": None,
        "problem_type": None,
    }
    data = opened(folder, {"prompt": "2 + 2?", "solution": "4", **empty}, {**empty, "problem": "3?", "answer": "3"})
    assert shown(data) == [Shown("2 + 2?", solution="4"), Shown("3?", solution="3", task="math")]


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_the_truth_of_verl_may_be_a_string_that_holds_a_mapping(folder, written):
    row = ASKED | {"reward_model": written({"style": "rule", "ground_truth": "3"})}
    data = opened(folder, row)
    assert data.format == "verl" and shown(data) == [Shown("Find x.", solution="3", task="math")]
    with pytest.raises(DataError, match=r"column 'reward_model': expected \{'ground_truth': \.\.\.\}, got '\{style"):
        opened(folder, row | {"reward_model": "{style: rule"})


def test_an_answer_in_a_column_that_nothing_reads_is_pointed_to(folder):
    [problem] = check_dataset(opened(folder, {"prompt": "x?", "answer": "3"}).source).problems
    assert "column 'solution': is missing" in str(problem) and "data.columns.solution=answer" in str(problem)
