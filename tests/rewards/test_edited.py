"""The verifier of edits: the world's own, half-made edits, and attacks."""

import random

import pytest

from mmrl.data.worlds.edits import Edits, after
from mmrl.errors import RewardError
from mmrl.rewards.edited import check_edit, verify
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts
from tests.rewards.pictures import noise, plain

CIRCLE = {"shape": "circle", "color": "red", "box": [0, 0, 7, 7]}
SQUARE = {"shape": "square", "color": "green", "box": [16, 16, 23, 23]}
BLUE = {**CIRCLE, "color": "blue"}


def scene(edit: str, to: str | None = None, **more) -> dict:
    asked = {"edit": edit, "color": "red", "shape": "circle"} | ({"to": to} if to else {})
    return {"size": 24, "background": "black", "objects": [CIRCLE, SQUARE], "asked": asked, **more}


def draw(*objects: dict, background: str = "black"):
    return Edits().render({"size": 24, "background": background}, list(objects))


def test_every_edit_of_the_world_is_right_and_doing_nothing_is_not():
    world = Edits()
    for level in range(1, 6):
        for seed in range(30):
            drawn = world.scene(random.Random(seed), level, "train")
            done = verify(world.render(drawn, after(drawn)), drawn)
            assert done == {"edit": 1, "kept": 1, "overall": 1, "success": 1}, drawn
            assert verify(world.render(drawn), drawn)["overall"] == 0


@pytest.mark.parametrize(
    ("asked", "objects", "edit", "kept"),
    [
        (scene("recolor", "blue"), [BLUE, SQUARE], 1, 1),
        (scene("recolor", "blue"), [{**BLUE, "shape": "square"}, SQUARE], 0.5, 1),  # the colour without the shape
        (scene("recolor", "blue"), [BLUE], 1, 0),  # the other one is gone
        (scene("recolor", "blue"), [CIRCLE, {**SQUARE, "color": "blue"}], 0, 0),  # the wrong one
        (scene("recolor", "blue"), [BLUE, {**CIRCLE, "box": [8, 8, 15, 15]}, SQUARE], 0, 0.5),  # and a copy is left
        (scene("recolor", "blue"), [{**BLUE, "box": [8, 0, 15, 7]}, SQUARE], 0, 2 / 3),  # moved, too
        (scene("move", "right"), [{**CIRCLE, "box": [16, 0, 23, 7]}, SQUARE], 1, 1),
        (scene("move", "right"), [{**CIRCLE, "box": [8, 0, 15, 7]}, SQUARE], 0, 2 / 3),  # half the way
        (scene("move", "right"), [CIRCLE, {**CIRCLE, "box": [16, 0, 23, 7]}, SQUARE], 0, 0.5),  # copied, not moved
        (scene("remove"), [SQUARE], 1, 1),
        (scene("remove"), [SQUARE, {**BLUE, "box": [16, 0, 23, 7]}], 1, 2 / 3),  # something new came
        (scene("remove"), [], 1, 0),
    ],
)
def test_by_hand(asked, objects, edit, kept):
    scores = verify(draw(*objects), asked)
    assert scores["edit"] == edit and scores["kept"] == pytest.approx(kept)
    assert scores["overall"] == pytest.approx(edit * kept)
    assert scores["success"] == (edit * kept == 1)


def test_the_wrong_background_halves_each_and_is_no_success():
    scores = verify(draw(SQUARE, background="white"), scene("remove"))
    assert (scores["edit"], scores["kept"], scores["success"]) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    "attack", [plain((30, 60, 230), 24), noise(0, 24), plain((0, 0, 0), 24), plain((250, 250, 0), 24)]
)
@pytest.mark.parametrize("asked", [scene("recolor", "blue"), scene("move", "right"), scene("remove")])
def test_attacks_are_worth_nothing(attack, asked):
    assert verify(attack, asked)["overall"] == 0


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (scene("paint", "blue"), "edit"),
        (scene("recolor", "gold"), "color"),
        (scene("move", "middle"), "place to move to"),
        (scene("remove", objects=[SQUARE]), "no object is 'red'"),
        (scene("remove", objects=[CIRCLE, CIRCLE]), "one colour"),
        (scene("remove", size=None), "expected pixels"),
        (scene("remove", asked=None), "edit"),
        ({}, "no objects"),
    ],
)
def test_a_scene_without_sense_is_refused(odd, said):
    with pytest.raises(RewardError, match=said) as caught:
        check_edit({"scene": odd})
    assert caught.value.column == "scene"


def test_through_the_panel():
    with RewardPanel(["edited"]) as panel:
        scores = panel.score([draw(SQUARE), draw(CIRCLE, SQUARE)], prompts(2, scene=[scene("remove")] * 2))
    assert scores.reward.tolist() == scores.success.tolist() == [1, 0]
