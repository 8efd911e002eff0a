"""How alike two pictures look."""

import pytest
from PIL import Image

from mmrl.rewards.looks import wavelet_similarity


def picture(*boxes, size=(64, 32)):
    image = Image.new("L", size, 255)
    for box in boxes:
        image.paste(0, box)
    return image


def test_equal_pictures_are_one_and_others_less():
    first = picture((4, 4, 20, 20))
    assert wavelet_similarity(first, first) == pytest.approx(1)
    moved, gone = wavelet_similarity(picture((6, 4, 22, 20)), first), wavelet_similarity(picture(), first)
    assert gone < moved < 1
    assert wavelet_similarity(picture((4, 4, 20, 20), size=(128, 64)), first) < 1, "the second's size wins"
