import pytest

from mmrl.data.formats.base import task_of
from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown

CHOICE = {
    "problem_id": 1, "problem": "Which way does the bar move?", "data_type": "video",
    "problem_type": "multiple choice", "options": ["A. left", "B. right"], "process": "",
    "solution": "<answer>B</answer>", "path": "./videos/a.mp4", "data_source": "toy",
}  # fmt: skip
NUMBER = {**CHOICE, "problem": "What is 3 x 4?", "data_type": "image", "problem_type": "numerical", "options": [],
          "solution": "<answer>12</answer>", "path": "./images/red.png"}  # fmt: skip
ASKED = "<video>Which way does the bar move?\nA. left\nB. right"


@pytest.mark.parametrize("columns", [None, {"prompt": "problem"}, {"prompt": "problem", "video": "path"}])
def test_modality_options_and_task_come_from_the_row(folder, columns):
    """Whatever a user names besides: an image is never opened as a video."""
    data = opened(folder, CHOICE, NUMBER, name="rows.json", columns=columns)
    assert data.format == "video_r1"
    first, second = shown(data)
    assert first == Shown(ASKED, [], ["a.mp4"], "B", "choice", ["A. left", "B. right"])
    assert second == Shown("<image>What is 3 x 4?", [(56, 56)], [], "12", "numeric", [])


def test_a_template_places_the_options_itself(folder):
    data = opened(folder, CHOICE, template="{prompt}\nOptions:\n{options}\nA letter, please.")
    assert shown(data)[0].text == "<video>Which way does the bar move?\nOptions:\nA. left\nB. right\nA letter, please."


def test_options_that_the_problem_lists_are_not_shown_twice(folder):
    inline = {**CHOICE, "problem": "Which way?\n(A) left\n(B) right"}
    assert shown(opened(folder, inline))[0].text == "<video>Which way?\n(A) left\n(B) right"


def test_a_modality_that_the_row_contradicts_is_refused(folder):
    with pytest.raises(DataError, match=r"column 'data_type': expected image or video.*got 'audio'"):
        opened(folder, {**CHOICE, "data_type": "audio"})


@pytest.mark.parametrize(
    ("problem_type", "task"),
    [("multiple choice", "choice"), ("OCR", "ocr"), ("regression", "regression"), ("free-form", "free_form"),
     ("temporal grounding", "temporal"), ("spatial_grounding", "box"), ("Binary-Classification", "boolean")],
)  # fmt: skip
def test_problem_types_become_tasks_or_keep_their_name(problem_type, task):
    assert task_of(problem_type) == task
