"""The verifier of clips: the world's own, each thing that can be wrong, and attacks."""

import random

import pytest

from mmrl.data.worlds.moves import Moves
from mmrl.errors import RewardError
from mmrl.rewards.choreography import check_moves, moved, verify
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts
from tests.rewards.pictures import noise, plain

MOVER = {"shape": "circle", "color": "red", "motion": "left"}
STANDING = {"shape": "square", "color": "blue", "motion": "stays"}
SCENE = {"objects": [MOVER, STANDING], "background": "black", "size": 16, "frames": 5}


def clip(*objects: dict, **scene) -> list:
    return Moves().render({**SCENE, "objects": list(objects), **scene}, random.Random(3))


def test_every_clip_of_the_world_is_right_and_its_reverse_is_not_where_it_moves():
    world = Moves()
    for level in range(1, 6):
        for seed in range(20):
            rng = random.Random(seed)
            scene = world.scene(rng, level, "train")
            frames = world.render(scene, rng)
            assert verify(frames, scene) == {"color": 1, "shape": 1, "motion": 1, "overall": 1, "success": 1}, scene
            moves = any(each["motion"] != "stays" for each in scene["objects"])
            assert verify(frames[::-1], scene)["success"] == (0 if moves else 1)


@pytest.mark.parametrize(
    ("mover", "color", "shape", "motion"),
    [
        ({"motion": "right"}, 1, 1, 0.5),  # only what stays is right
        ({"motion": "stays"}, 1, 1, 0.5),
        ({"shape": "square"}, 1, 0.5, 1),
        ({"color": "green"}, 0.5, 0.5, 0.5),
    ],
)
def test_each_thing_that_can_be_wrong(mover, color, shape, motion):
    objects = ({**MOVER, **mover}, STANDING)
    frames = clip(*objects) if mover.get("motion") != "stays" else clip(MOVER, STANDING)[:1] * 5
    scores = verify(frames, SCENE)
    assert (scores["color"], scores["shape"], scores["motion"]) == (color, shape, motion)
    assert scores["overall"] == pytest.approx((color + shape + motion) / 3) and scores["success"] == 0


def test_the_two_objects_changed_about_are_wrong():
    changed = verify(clip({**MOVER, "motion": "stays"}, {**STANDING, "motion": "left"}), SCENE)
    assert changed["motion"] == 0 and changed["color"] == 1


def test_an_extra_object_costs_as_much_as_a_missing_one():
    """F1 of one asked and two found: 2 / 3."""
    alone = {**SCENE, "objects": [MOVER]}
    assert verify(clip(MOVER, STANDING), alone)["color"] == pytest.approx(2 / 3)
    assert verify(clip(MOVER), SCENE)["color"] == pytest.approx(2 / 3)


def test_the_wrong_background_halves_it():
    assert verify(clip(MOVER, STANDING, background="white"), SCENE)["overall"] == pytest.approx(0.5)


class TestTracks:
    def test_by_hand(self):
        """Three of four steps go left, .3 of the picture in all: 3 / 4; a tenth only: 3 / 4 x .1 / .25."""
        far = [(0.6, 0.5), (0.5, 0.5), (0.4, 0.5), (0.4, 0.5), (0.3, 0.5)]
        near = [(0.60, 0.5), (0.57, 0.5), (0.54, 0.5), (0.54, 0.5), (0.50, 0.5)]
        assert moved(far, "left") == pytest.approx(0.75)
        assert moved(near, "left") == pytest.approx(0.75 * 0.1 / 0.25)
        assert moved(far, "right") == moved(far, "up") == moved(far, "stays") == 0

    def test_trembling_earns_nothing(self):
        there_and_back = [(0.3, 0.5), (0.6, 0.5)] * 3 + [(0.3, 0.5)]
        assert moved(there_and_back, "left") == 0
        assert moved(there_and_back, "stays") == 0

    def test_what_is_not_seen_goes_no_way(self):
        assert moved([None] * 5, "left") == moved([None] * 5, "stays") == 0
        assert moved([(0.8, 0.5), None, (0.4, 0.5), (0.2, 0.5), (0.1, 0.5)], "left") == pytest.approx(0.5)


def test_attacks_are_worth_less_than_the_clip():
    for frames in ([plain((220, 30, 30))] * 5, [noise(t) for t in range(5)], [plain((0, 0, 0))] * 5):
        assert verify(frames, SCENE)["overall"] == 0
    flood = [plain((220, 30, 30))] * 2 + clip(MOVER, STANDING)[2:]
    assert verify(flood, SCENE)["overall"] < 0.75


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objects": [{**MOVER, "motion": "sideways"}]}, "motion"),
        ({"objects": [MOVER, {**STANDING, "color": "red"}]}, "two objects are red"),
        ({"objects": []}, "no objects"),
        ({"background": "plaid"}, "background"),
    ],
)
def test_a_scene_without_sense_is_refused(change, said):
    with pytest.raises(RewardError, match=said) as caught:
        check_moves({"scene": {**SCENE, **change}})
    assert caught.value.column == "scene"


def test_a_picture_is_no_clip():
    with pytest.raises(RewardError, match="reads clips, lists of at least two images"):
        verify(plain("red"), SCENE)


def test_through_the_panel_its_parts_are_components():
    with RewardPanel(["choreography"]) as panel:
        scores = panel.score([clip(MOVER, STANDING)], prompts(1, scene=[SCENE]))
    assert scores.reward.tolist() == scores.success.tolist() == [1]
    assert set(scores.components) >= {"choreography", "choreography/motion", "choreography/color"}
