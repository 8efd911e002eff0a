"""The compositional verifier on pictures of our own: what is right, each thing that can be wrong, and attacks."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mmrl.errors import RewardError
from mmrl.rewards.image import (
    PALETTE,
    SHAPES,
    SUBSCORES,
    asked_objects,
    check_scene,
    classify,
    compositional,
    verify,
)
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts

SIZE = 24
RED_CIRCLE = {"objects": [{"shape": "circle", "color": "red", "count": 1, "position": "left"}], "background": "black"}
LEFT, RIGHT, TOP, BOTTOM = (2, 8), (15, 8), (8, 2), (8, 15)


def draw(draw_on: ImageDraw.ImageDraw, shape: str, x: int, y: int, side: int, color) -> None:
    box = (x, y, x + side - 1, y + side - 1)
    if shape == "circle":
        draw_on.ellipse(box, fill=color)
    elif shape == "square":
        draw_on.rectangle(box, fill=color)
    elif shape == "triangle":
        draw_on.polygon([(box[0], box[3]), (box[2], box[3]), (x + (side - 1) // 2, y)], fill=color)
    else:
        arm = side // 3
        draw_on.rectangle((x + arm, y, box[2] - arm, box[3]), fill=color)
        draw_on.rectangle((x, y + arm, box[2], box[3] - arm), fill=color)


def picture(*objects, background: str = "black", size: int = SIZE, side: int = 7) -> Image.Image:
    """Objects are (shape, color, (x, y))."""
    image = Image.new("RGB", (size, size), PALETTE[background])
    for shape, color, (x, y) in objects:
        draw(ImageDraw.Draw(image), shape, x, y, side, PALETTE[color])
    return image


def scores(image, scene=RED_CIRCLE) -> tuple[float, ...]:
    """(color, shape, count, position, overall, success)"""
    return tuple(verify(image, scene)[name] for name in (*SUBSCORES, "overall", "success"))


class TestRight:
    def test_the_asked_picture(self):
        assert scores(picture(("circle", "red", LEFT))) == (1, 1, 1, 1, 1, 1)

    @pytest.mark.parametrize("color", [name for name in PALETTE if name not in ("black", "gray", "white")])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("background", ["black", "gray", "white"])
    def test_every_colour_shape_and_background(self, shape, color, background):
        scene = {"objects": [{"shape": shape, "color": color}], "background": background}
        assert verify(picture((shape, color, (8, 8)), background=background), scene)["success"] == 1

    @pytest.mark.parametrize("side", range(6, 15))
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes_from_six_pixels_on(self, shape, side):
        image = picture((shape, "red", (1, 1)), size=side + 2, side=side)
        mask = np.asarray(image)[..., 0] > 0
        rows, columns = np.nonzero(mask)
        assert classify(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]) == shape

    @pytest.mark.parametrize(("size", "side"), [(16, 6), (24, 7), (32, 10), (64, 20)])
    def test_every_size(self, size, side):
        image = picture(("cross", "blue", (1, size // 2 - side // 2)), size=size, side=side)
        scene = {"objects": [{"shape": "cross", "color": "blue", "position": "left"}]}
        assert verify(image, scene)["success"] == 1

    def test_several_groups(self):
        scene = {
            "objects": [
                {"shape": "circle", "color": "red", "count": 2, "position": "left"},
                {"shape": "square", "color": "blue", "count": 1, "position": "right"},
            ]
        }
        image = picture(("circle", "red", (1, 2)), ("circle", "red", (1, 14)), ("square", "blue", RIGHT))
        assert verify(image, scene)["success"] == 1

    def test_every_picture_of_the_world_is_right(self):
        from mmrl.data.worlds.compositions import Compositions

        world = Compositions()
        for level in (1, 2, 3, 4, 5):
            for seed in range(12):
                rng = random.Random(seed)
                scene = world.scene(rng, level, "train")
                assert verify(world.render(scene, rng), scene)["success"] == 1, scene

    @pytest.mark.parametrize(
        ("position", "place"),
        [
            ("left", LEFT),
            ("right", RIGHT),
            ("top", TOP),
            ("bottom", BOTTOM),
            ("center", (8, 8)),
            ("top left", (1, 1)),
            ("bottom right", (16, 16)),
        ],
    )
    def test_positions(self, position, place):
        scene = {"objects": [{"shape": "circle", "color": "red", "position": position}]}
        assert verify(picture(("circle", "red", place)), scene)["position"] == 1
        far = (16 - place[0], 16 - place[1]) if position != "center" else (0, 0)
        assert verify(picture(("circle", "red", far)), scene)["position"] == 0

    def test_noise_that_leaves_it_readable(self):
        noise = np.random.default_rng(0).normal(0, 20, (SIZE, SIZE, 3))
        noisy = (np.asarray(picture(("circle", "red", LEFT))) + noise).clip(0, 255).astype(np.uint8)
        assert scores(Image.fromarray(noisy)) == (1, 1, 1, 1, 1, 1)


class TestWrong:
    """One thing is wrong: its sub-score falls, the others stay, and it is no success."""

    def test_shape(self):
        assert scores(picture(("square", "red", LEFT))) == (1, 0, 1, 1, 0.75, 0)

    def test_position(self):
        assert scores(picture(("circle", "red", RIGHT))) == (1, 1, 1, 0, 0.75, 0)

    def test_colour(self):
        assert scores(picture(("circle", "blue", LEFT))) == (0, 0, 0, 0, 0, 0)

    def test_count(self):
        """Two instead of one: half the things are extra, so F1 = 2/3, and the count is off by all of it."""
        image = picture(("circle", "red", (2, 2)), ("circle", "red", (2, 14)))
        assert scores(image) == pytest.approx((2 / 3, 2 / 3, 0, 2 / 3, 0.5, 0))

    def test_an_extra_thing(self):
        image = picture(("circle", "red", LEFT), ("square", "blue", RIGHT))
        assert scores(image) == pytest.approx((2 / 3, 2 / 3, 1, 2 / 3, 0.75, 0))

    def test_a_missing_thing(self):
        scene = {"objects": [{"shape": "circle", "color": "red", "count": 2}]}
        assert scores(picture(("circle", "red", LEFT)), scene) == pytest.approx((2 / 3, 2 / 3, 0.5, 2 / 3, 0.625, 0))

    def test_colours_swapped_between_shapes(self):
        """Red circle and blue square asked, blue circle and red square drawn: the right words, wrongly bound."""
        scene = {"objects": [{"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"}]}
        image = picture(("circle", "blue", LEFT), ("square", "red", RIGHT))
        assert scores(image, scene) == (1, 0, 1, 1, 0.75, 0)

    def test_background(self):
        assert scores(picture(("circle", "red", LEFT), background="white")) == (0.5, 0.5, 0.5, 0.5, 0.5, 0)


class TestAttacks:
    """Cheap pictures that a colour-counting reward would pay for."""

    def test_filling_the_picture_with_the_colour(self):
        assert scores(Image.new("RGB", (SIZE, SIZE), PALETTE["red"])) == (0, 0, 0, 0, 0, 0)

    @pytest.mark.parametrize("share", [0.4, 0.5, 0.7, 0.9])
    def test_filling_part_of_it(self, share):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[:, : round(share * SIZE)] = PALETTE["red"]
        assert verify(Image.fromarray(pixels), RED_CIRCLE)["overall"] == 0

    def test_blank(self):
        for name in ("black", "gray", "white"):
            assert scores(Image.new("RGB", (SIZE, SIZE), PALETTE[name])) == (0, 0, 0, 0, 0, 0)

    @pytest.mark.parametrize("kind", ["uniform", "gaussian", "coarse"])
    def test_noise(self, kind):
        rng = np.random.default_rng(0)
        for _ in range(50):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3))
            if kind == "gaussian":
                pixels = (128 + 64 * rng.normal(size=(SIZE, SIZE, 3))).clip(0, 255)
            if kind == "coarse":
                pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((3, 3, 1)))
            assert verify(Image.fromarray(pixels.astype(np.uint8)), RED_CIRCLE)["overall"] < 0.3

    def test_confetti_of_all_colours(self):
        colors = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
        places = [(1 + 8 * (i % 3), 1 + 8 * (i // 3)) for i in range(8)]
        image = picture(*[("circle", c, p) for c, p in zip(colors, places, strict=True)], side=6)
        assert verify(image, RED_CIRCLE)["overall"] < 0.45

    def test_single_pixels_are_no_objects(self):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[::2, ::2] = PALETTE["red"]
        assert verify(Image.fromarray(pixels), RED_CIRCLE)["overall"] == 0


@given(st.integers(0, 2**32 - 1))
def test_scores_are_shares_and_overall_is_their_mean(seed):
    rng = np.random.default_rng(seed)
    image = picture(*[(rng.choice(SHAPES), rng.choice([*PALETTE]), rng.integers(0, 18, 2).tolist()) for _ in range(4)])
    result = verify(image, RED_CIRCLE)
    assert all(0 <= value <= 1 for value in result.values())
    assert result["overall"] == pytest.approx(sum(result[name] for name in SUBSCORES) / 4)
    assert result["success"] <= result["overall"]


class TestScene:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"shape": "circel"}, "did you mean 'circle'"),
            ({"color": "rad"}, "did you mean 'red'"),
            ({"color": "black"}, "unknown color 'black'"),
            ({"position": "lft"}, "did you mean 'left'"),
            ({"count": 0}, "count 0"),
            ({"count": "2"}, "count '2'"),
        ],
    )
    def test_what_it_cannot_see_is_refused(self, change, message):
        scene = {"objects": [{"shape": "circle", "color": "red", **change}]}
        with pytest.raises(RewardError, match=message):
            check_scene({"scene": scene})

    @pytest.mark.parametrize("scene", [None, {}, {"objects": []}, "a red circle"])
    def test_no_scene(self, scene):
        with pytest.raises(RewardError, match="has no objects"):
            asked_objects(scene)

    def test_a_count_asks_for_as_many(self):
        assert len(asked_objects({"objects": [{"shape": "cross", "color": "red", "count": 3}]})) == 3


def test_in_the_panel():
    """Pictures go to a worker and come back as components; the sum is over `overall` alone."""
    images = [picture(("circle", "red", LEFT)), picture(("square", "red", LEFT))]
    with RewardPanel(["compositional"]) as panel:
        result = panel.score(images, prompts(2, scene=RED_CIRCLE))
    assert result.reward.tolist() == [1, 0.75]
    assert result.success.tolist() == [1, 0]
    assert result.components["compositional/shape"].tolist() == [1, 0]
    assert compositional(images, [RED_CIRCLE] * 2)[1]["overall"] == 0.75
