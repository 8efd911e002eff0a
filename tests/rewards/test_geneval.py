"""GenEval: clauses against what a detector found; the geometry in numbers worked by hand."""

import pytest
from PIL import Image

from mmrl.errors import RewardError
from mmrl.rewards.geneval import check_row, clauses, counted, geneval, relations
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts

DETECTOR = '''
def detect(images, classes):
    """One cup for each unit of the picture's red, as certain as its green says."""
    found = []
    for image, wanted in zip(images, classes):
        assert wanted == ["cup"]
        count, certain, _ = image.getpixel((0, 0))
        boxes = [[10 * i, 0, 10 * i + 5, 5] for i in range(count)]
        found.append([{"class": "cup", "box": box, "score": certain / 100} for box in boxes])
    return found
'''
CUPS = {"include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup", "count": 3}], "tag": "counting"}


def found(name: str, box=(0, 0, 10, 10), score: float = 0.95, **more) -> dict:
    return {"class": name, "box": box, "score": score, **more}


@pytest.fixture
def detector(tmp_path) -> str:
    (tmp_path / "detector.py").write_text(DETECTOR)
    return f"{tmp_path / 'detector.py'}:detect"


@pytest.mark.parametrize(
    ("a", "b", "where"),
    [
        ((20, 0, 30, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (20, 0, 30, 10), {"left of"}),
        ((0, 20, 10, 30), (0, 0, 10, 10), {"below"}),  # pictures count downwards
        # offset (20, 20), a tenth of both extents is 2: (18, 18) / 28.28 = .64 on both axes
        ((20, 20, 30, 30), (0, 0, 10, 10), {"right of", "below"}),
        # offset (2, 0), no more than a tenth of 10 + 10
        ((2, 0, 12, 10), (0, 0, 10, 10), set()),
        # offset (3, 0): (3 - 2) / 3 = .33, not beyond .5
        ((3, 0, 13, 10), (0, 0, 10, 10), set()),
        # offset (5, 0): (5 - 2) / 5 = .6
        ((5, 0, 15, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
    ],
)
def test_where_one_box_lies_from_another(a, b, where):
    assert relations(a, b) == where


def test_counts_colours_and_positions():
    dog, tie = {"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}
    scene = [found("dog"), found("tie", (20, 0, 30, 10), color="red")]
    assert clauses(scene, [dog, tie], None) == [True, True]
    assert clauses(scene, [dog, {**tie, "position": ["left of", 0]}], None) == [True, False]
    assert clauses(scene[1:], [dog, tie], None) == [False, False]  # nothing to be right of
    assert clauses(scene, [{"class": "tie", "count": 1, "color": "red"}], None) == [True]
    assert clauses(scene, [{"class": "tie", "count": 1, "color": "blue"}], None) == [False]
    assert clauses(scene, [dog], [{"class": "dog", "count": 2}]) == [True, True]
    assert clauses(scene, [dog], [{"class": "dog", "count": 1}]) == [True, False]
    with pytest.raises(ValueError, match="the detector gives no 'color'"):
        clauses(scene, [{"class": "dog", "count": 1, "color": "red"}], None)


def test_what_counts_is_certain_and_limited():
    many = [found("cup", score=s / 10) for s in range(10)]
    assert [f["score"] for f in counted(many, 0.5, 3)] == [0.9, 0.8, 0.7]
    assert [f["score"] for f in counted(many, 0.8, 3)] == [0.9]  # above, not at


def test_pictures_are_judged_by_the_users_detector(detector):
    """Three cups break `exclude`; at .8 no cup counts where the tag is counting, and two do where it is not."""
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ((2, 95, 0), (3, 95, 0), (1, 95, 0), (2, 80, 0))]
    rows = prompts(4, **{name: [value] * 4 for name, value in CUPS.items()})
    with RewardPanel([{"name": "geneval", "options": {"detector": detector}}]) as panel:
        panel.check(rows)
        scores = panel.score(pictures, rows)
    assert scores.reward.tolist() == [1, 0, 0, 0] == scores.success.tolist()
    columns = {name: [value] for name, value in CUPS.items()} | {"tag": ["two_object"]}
    assert geneval(pictures[3:], detector=detector, **columns) == [{"score": 1.0, "success": 1.0}]
    graded = geneval(pictures[1:2], detector=detector, graded=True, **columns)
    assert graded == [{"score": 0.5, "success": 0.0}]


def test_without_a_detector_nothing_begins():
    with (
        RewardPanel(["geneval"]) as panel,
        pytest.raises(RewardError, match="needs a detector and has none") as refused,
    ):
        panel.check(prompts(1, **{name: [value] for name, value in CUPS.items()}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ([], "include is \\[\\]"),
        ([{"class": "cup"}], "entry 0: expected {'class', 'count'}"),
        ([{"class": "cup", "count": 0}], "entry 0: expected"),
        ([{"class": "cup", "count": 1, "position": ["right", 0]}], "unknown position 'right'; did you mean 'right of'"),
        ([{"class": "cup", "count": 1, "position": ["left of", 0]}], "position points to entry 0; expected one before"),
    ],
)
def test_clauses_that_say_nothing_are_refused(include, message):
    with pytest.raises(RewardError, match=message):
        check_row({"include": include}, detector="x.py:f")
