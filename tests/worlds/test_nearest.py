"""The second verifier of compositions: right on what the world draws, and not fooled where the first is."""

import numpy as np
import pytest
from PIL import Image

from mmrl.data.worlds import open_world
from mmrl.data.worlds.compositions import Compositions
from mmrl.data.worlds.nearest import PARTS, nearest_picture
from mmrl.data.worlds.scenes import draw_objects
from mmrl.errors import DataError

WORLD = open_world("compositions", split="test", size=24, difficulty=2)
SCENES = [WORLD.scene(index)[1] for index in range(24)]


def overall(images, scenes):
    return [each["overall"] for each in nearest_picture(images, scenes)]


def test_pictures_of_the_world_are_right_also_under_noise():
    pictures = [Compositions().render(scene) for scene in SCENES]
    noise = np.random.default_rng(0)
    moved = [np.clip(np.asarray(p) + noise.normal(0, 30, (24, 24, 3)), 0, 255) for p in pictures]
    noisy = [Image.fromarray(each.astype("uint8")) for each in moved]
    assert overall(pictures, SCENES) == overall(noisy, SCENES) == [1.0] * 24


def test_each_part_that_is_wrong_costs_a_fifth():
    for scene in SCENES[:6]:
        first = scene["objects"][0]
        for part, choices in {"color": ("cyan", "red"), "shape": ("cross", "circle")}.items():
            value = choices[first[part] == choices[0]]
            drawn = Compositions().render({**scene, "objects": [{**first, part: value}]})
            said = nearest_picture([drawn], [scene])[0]
            assert said["overall"] == pytest.approx(0.8) and said[part] == 0 and sum(said[p] for p in PARTS) == 4


def test_an_object_in_a_corner_is_on_both_of_its_sides():
    scene = {**SCENES[0], "objects": [{"shape": "circle", "color": "red", "count": 1, "position": "left"}]}
    picture = draw_objects(24, scene["background"], [{"shape": "circle", "color": "red", "box": [0, 0, 7, 7]}])
    for position in ("left", "top"):
        asked = {**scene, "objects": [{**scene["objects"][0], "position": position}]}
        assert overall([picture], [asked]) == [1.0]


def test_two_groups_are_refused():
    with pytest.raises(DataError, match="one group, got 2"):
        nearest_picture([Compositions().render(SCENES[0])], [{**SCENES[0], "objects": SCENES[0]["objects"] * 2}])
