"""Which frames, at which size: worked numbers, and agreement with qwen-vl-utils over random inputs."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmrl.data.sampling import choose_frames, clip_range, frame_count, frame_size, resized
from mmrl.errors import ConfigError, DataError
from mmrl.media import VideoSampling


def test_two_seconds_at_four_frames_a_second_are_eight_frames_over_the_whole_range():
    indices, total = choose_frames(60, 30.0, VideoSampling(fps=4))
    assert indices == [0, 8, 17, 25, 34, 42, 51, 59]
    assert total == 60


def test_a_sub_clip_has_absolute_indices_and_its_own_length():
    indices, total = choose_frames(60, 30.0, VideoSampling(fps=4, min_frames=2), start=1.0, end=1.9)
    assert (indices[0], indices[-1], total) == (30, 57, 28)
    assert len(indices) == 2  # 28 / 30 * 4 = 3.7, down to a multiple of 2


@pytest.mark.parametrize(
    ("total", "changes", "expected"),
    [
        (60, {"fps": 2}, 4),
        (60, {"fps": 0.1}, 4),  # min_frames
        (6000, {"fps": 2, "max_frames": 32}, 32),
        (6000, {"fps": None, "max_frames": 32}, 32),
        (7, {"fps": 100}, 6),  # no more than there are, down to a multiple
        (7, {"fps": 100, "frame_multiple": 1}, 7),
        (60, {"fps": 5, "frame_multiple": 4}, 8),
        (60, {"fps": 2, "max_frames": 2}, 2),  # max_frames wins over min_frames
    ],
)
def test_frame_counts(total, changes, expected):
    assert frame_count(total, 30.0, VideoSampling(**changes)) == expected


def test_too_few_frames_and_impossible_settings_are_named():
    with pytest.raises(DataError, match=r"holds 1 frame\(s\), needs at least 2"):
        frame_count(1, 30.0, VideoSampling())
    with pytest.raises(ConfigError, match="max_frames=1 is below frame_multiple=2"):
        frame_count(60, 30.0, VideoSampling(max_frames=1))
    with pytest.raises(ConfigError, match="max_pixels=100 is below min_pixels=784"):
        resized(48, 96, 28, 784, 100)
    with pytest.raises(DataError, match="more than 200 times longer"):
        resized(1, 201, 28, 784, 100_000)
    with pytest.raises(DataError, match="do not fit max_pixels"):
        resized(20, 2000, 28, 784, 10_000)


def test_ranges_outside_the_video_are_errors_and_a_late_end_means_the_end():
    assert clip_range(60, 30.0, None, None) == (0, 59)
    assert clip_range(60, 30.0, 0.5, 99.0) == (15, 59)
    with pytest.raises(DataError, match=r"start=2 s is outside the video, which lasts 2\.00 s"):
        clip_range(60, 30.0, 2.0, None)
    for end in (-1.0, float("nan")):
        with pytest.raises(DataError, match="is outside the video"):
            clip_range(60, 30.0, None, end)
    with pytest.raises(DataError, match="no frame between"):
        clip_range(60, 30.0, 1.01, 1.02)


def test_total_pixels_lowers_the_size_of_long_clips_only():
    sampling = VideoSampling(min_pixels=28 * 28, max_pixels=64 * 28 * 28, total_pixels=256 * 28 * 28)
    short, long = frame_size(480, 640, 4, sampling), frame_size(480, 640, 64, sampling)
    assert short == resized(480, 640, 28, 28 * 28, 64 * 28 * 28) == (168, 252)
    assert long == (56, 84)  # 256 / 64 * 2 = 8 patches a frame: 2 x 3 fit its shape


@given(
    total=st.integers(2, 20_000),
    rate=st.sampled_from([8.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0]),
    fps=st.floats(0.05, 60),
    low=st.integers(1, 32),
    high=st.integers(2, 768),
)
@settings(max_examples=300)
def test_frame_counts_agree_with_qwen_vl_utils(total, rate, fps, low, high):
    from qwen_vl_utils.vision_process import smart_nframes

    theirs = smart_nframes({"fps": fps, "min_frames": low, "max_frames": high}, total, rate)
    assert frame_count(total, rate, VideoSampling(fps=fps, min_frames=low, max_frames=high)) == theirs


@given(
    total=st.integers(2, 5000),
    rate=st.sampled_from([23.976, 25.0, 30.0]),
    start=st.none() | st.floats(0, 100),
    length=st.none() | st.floats(0.2, 300),
)
@settings(max_examples=300)
def test_ranges_agree_with_qwen_vl_utils(total, rate, start, length):
    from qwen_vl_utils.vision_process import calculate_video_frame_range

    end = None if length is None else (start or 0) + length
    try:
        first, last, _ = calculate_video_frame_range({"video_start": start, "video_end": end}, total, rate)
    except ValueError:
        assume(False)
    for asked in (start, end):  # there, a time that floats put next to a frame's misses that frame
        assume(asked is None or abs(asked * rate - round(asked * rate)) > 1e-4)
    assert clip_range(total, rate, start, end) == (first, last)
    assert torch.linspace(first, last, 2).long().tolist() == [first, last]


@given(
    height=st.integers(16, 2160),
    width=st.integers(16, 3200),
    factor=st.sampled_from([28, 32]),
    high=st.integers(8, 768),
)
@settings(max_examples=300)
def test_sizes_agree_with_qwen_vl_utils(height, width, factor, high):
    from qwen_vl_utils.vision_process import smart_resize

    low, high = 4 * factor**2, high * factor**2
    theirs = smart_resize(height, width, factor, low, high)
    assume(min(theirs) > 0)  # theirs may be zero pixels wide; ours is an error
    assert resized(height, width, factor, low, high) == theirs
