"""Rewards of a picture's own pixels."""

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.pixels import check_color, color_share, jpeg_compressibility, jpeg_incompressibility
from tests.rewards.pictures import noise, plain, square


def test_plain_pictures_are_smaller_files_than_busy_ones():
    flat, busy = jpeg_compressibility([plain((128, 128, 128), 64), noise(0, 64)])
    assert busy < flat < 0
    assert jpeg_incompressibility([noise(0, 64)]) == [-busy]


def test_a_share_is_counted_pixel_by_pixel():
    picture = square(0, 0, side=16, size=32)  # a quarter of it is red
    assert color_share([picture, picture, picture], ["red", "black", "blue"]) == [0.25, 0.75, 0]
    assert color_share([picture], ["red"], enough=0.2) == [1]


@pytest.mark.parametrize("color", [None, "", "scarlet", 3])
def test_an_unknown_colour_is_refused(color):
    with pytest.raises(RewardError, match="color"):
        check_color({"color": color})


def test_what_is_no_picture_is_refused():
    for reward in (jpeg_compressibility, jpeg_incompressibility):
        with pytest.raises(RewardError, match="reads PIL images"):
            reward(["text"])
    with pytest.raises(RewardError, match="reads PIL images"):
        color_share([[plain("red")]], ["red"])
    with pytest.raises(RewardError, match="enough=0"):
        color_share([plain("red")], ["red"], enough=0)
