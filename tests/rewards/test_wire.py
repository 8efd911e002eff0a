"""What goes to a worker comes out as it went in."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrl.errors import RewardError
from mmrl.media import Film, Sound
from mmrl.rewards.wire import read_message, write_message

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


def travel(value):
    stream = io.BytesIO()
    write_message(stream, {"value": value})
    stream.seek(0)
    return read_message(stream)["value"]


@given(values)
def test_plain_values_keep_their_types(value):
    assert travel(value) == value
    assert repr(travel(value)) == repr(value)


@pytest.mark.parametrize("key", ["$image", "$tuple", "$path", "$items", "$film", "$sound"])
def test_a_key_of_our_own_notation_is_no_trouble(key):
    assert travel({key: [1, 2]}) == {key: [1, 2]}


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_images_arrive_pixel_by_pixel(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    frames = travel([image, [image, "text"]])
    assert frames[0].mode == mode
    assert frames[0].size == (7, 5)
    assert frames[0].tobytes() == frames[1][0].tobytes() == image.tobytes()


def test_films_keep_their_rate_and_sounds_their_samples():
    film = travel({"film": Film([Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(3)], 24)})["film"]
    assert film.fps == 24 and [frame.getpixel((0, 0))[0] for frame in film] == [0, 1, 2]
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 5)).astype(np.float32)
    sound = travel([Sound(samples, 16000)])[0]
    assert sound.rate == 16000 and np.array_equal(sound.samples, samples)


def test_paths_arrays_and_tensors():
    assert travel(Path("a/b")) == Path("a/b")
    assert travel(np.arange(3)) == [0, 1, 2]
    assert travel(torch.ones(2, 1)) == [[1], [1]]


def test_anything_else_is_refused_by_name():
    with pytest.raises(RewardError, match=r"columns.meta\[0\] is a object"):
        write_message(io.BytesIO(), {"columns": {"meta": [object()]}})


def test_a_message_cut_short_is_no_message():
    stream = io.BytesIO()
    write_message(stream, {"image": Image.new("RGB", (4, 4))})
    for length in (0, 5, len(stream.getvalue()) - 1):
        assert read_message(io.BytesIO(stream.getvalue()[:length])) is None
