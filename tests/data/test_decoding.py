"""Readers agree, and what each cannot read is refused or passed on, never misread."""

import os
import random

import numpy as np
import pytest
import torch

from mmrl.data.decoding import decode, resize
from mmrl.data.frame_index import DecodeLimits, check_container, frame_index, timeline
from mmrl.data.readers import PyAVReader, installed, reader_of
from mmrl.errors import ConfigError, DataError
from mmrl.media import VideoSampling
from tests.data.clips import cut_short, frame, numbers, write_audio, write_clip, write_rotated

CODECS = [("libx264", "a.mp4"), ("libx264", "a.mkv"), ("libvpx-vp9", "a.webm"), ("mpeg4", "a.mp4")]


def every_frame(backend: str = "auto", **changes) -> VideoSampling:
    return VideoSampling(fps=None, max_frames=64, min_pixels=28 * 28, frame_multiple=1, backend=backend, **changes)


@pytest.mark.parametrize(("codec", "name"), CODECS)
def test_decord_and_pyav_read_the_same_frames(tmp_path, codec, name):
    path = write_clip(tmp_path / name, codec=codec)
    decord, pyav = decode(path, every_frame("decord")), decode(path, every_frame("pyav"))
    assert numbers(decord.pixels) == numbers(pyav.pixels) == list(range(60))
    assert torch.equal(decord.pixels, pyav.pixels)
    assert (decord.indices, decord.total_frames, decord.size) == (pyav.indices, pyav.total_frames, pyav.size)
    assert decord.fps == pytest.approx(30) == pyav.fps


@pytest.mark.skipif(not installed("torchcodec"), reason="not run: torchcodec not installed")
def test_torchcodec_reads_the_same_frames(clip):
    made = decode(clip, every_frame("torchcodec"))
    assert (made.pixels.int() - decode(clip, every_frame("pyav")).pixels.int()).abs().max() <= 1


@pytest.mark.parametrize(
    "options", [{"g": "1"}, {"g": "5", "bf": "0"}, {"g": "12", "bf": "3"}, {"g": "600", "bf": "3"}]
)
def test_pyav_finds_single_frames_wherever_the_keyframes_are(tmp_path, options):
    path = write_clip(tmp_path / "a.mp4", frames=64, options=options)
    wanted = sorted(random.Random(0).sample(range(64), 5))
    reader = PyAVReader(path, frame_index(path, DecodeLimits()))
    pixels = torch.from_numpy(reader.pixels(wanted)).permute(0, 3, 1, 2)
    assert numbers(pixels) == wanted
    assert np.array_equal(reader.pixels([9, 9, 3])[2], reader.pixels([3])[0])


def test_av1_is_read_by_pyav_and_refused_by_decord(tmp_path):
    path = write_clip(tmp_path / "a.mp4", codec="libsvtav1", options={"preset": "12", "crf": "5"})
    made = decode(path, every_frame())
    assert all(abs(seen - number) <= 1 for number, seen in enumerate(numbers(made.pixels)))
    assert made.backend == reader_of("pyav")[1]
    with pytest.raises(DataError, match=r"a\.mp4: cannot be read \(av1\) by decord: .*; backend auto may read it"):
        decode(path, every_frame("decord"))


def test_auto_is_pyav_whose_frames_can_be_checked():
    assert reader_of("auto") == reader_of("pyav")
    assert reader_of("decord")[1].startswith("decord ")


def test_an_absent_backend_is_a_configuration_error():
    if installed("torchcodec"):
        pytest.skip("torchcodec is installed")
    with pytest.raises(ConfigError, match="'torchcodec' is not installed"):
        reader_of("torchcodec")


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotated_files_come_upright(tmp_path, clip, clockwise):
    path = write_rotated(tmp_path / "r.mp4", clip, clockwise)
    made = decode(path, every_frame())
    flat = decode(clip, every_frame("pyav"))
    assert made.size == ((96, 48) if clockwise != 180 else (48, 96))
    with pytest.raises(DataError, match=f"by decord: misreads a rotation by {360 - clockwise} degrees"):
        decode(path, every_frame("decord"))
    red = {90: made.pixels[0, 0, :, -4:], 180: made.pixels[0, 0, -4:], 270: made.pixels[0, 0, :, :4]}[clockwise]
    assert red.float().mean() > 230 > flat.pixels[0, 0, -4:].float().mean() + 150


def test_variable_frame_rate_keeps_time(tmp_path):
    """30 frames within 0.3 s, then one every 0.1 s: evenly spread in time is not evenly spread in frames."""
    shown = [10 * i for i in range(30)] + [300 + 100 * i for i in range(30)]
    path = write_clip(tmp_path / "v.mp4", milliseconds=shown)
    for backend in ("decord", "pyav"):
        made = decode(path, every_frame(backend).model_copy(update={"max_frames": 9}))
        seconds = [i / made.fps for i in made.indices]
        assert seconds[-1] == pytest.approx(3.2, abs=1e-3)
        for number, second in zip(numbers(made.pixels), seconds, strict=True):
            assert shown[number] / 1000 <= second + 2e-3
            assert number == 59 or shown[number + 1] / 1000 > second
    half = decode(path, every_frame(), start=1.6, end=3.2)
    assert numbers(half.pixels)[0] in (43, 44)  # shown at 1.6 s and 1.7 s; by frame count it would be frame 30


def slots(times, fps, unit=1e-3):
    line = timeline(np.asarray(times), fps, unit)
    return round(line.fps, 3), line.total, line.slots is None or line.slots.tolist()


def test_timeline_of_a_constant_rate_is_the_file_rate():
    assert slots(np.arange(10) / 25.0, 25.0) == (25, 10, True)
    assert slots([0.0], 0.0) == (1, 1, True)
    assert slots(np.round(np.arange(60) / 30, 3), 30.303) == (30, 60, True)  # milliseconds, and a header that errs
    assert slots(np.arange(40) * 1001 / 24000, 0.0) == (23.976, 40, True)


def test_timeline_keeps_the_place_of_frames_left_out_and_cuts_other_time_into_milliseconds():
    assert slots([0.0, 0.04, 0.16, 0.2], 25.0) == (25, 6, [0, 1, 4, 5])
    assert slots([0.0, 0.0413, 0.1207, 2.0], 1.5) == (1000.5, 2002, [0, 41, 121, 2001])
    line = timeline(np.array([0.0, 0.0413, 0.1207, 2.0]), 1.5, 1e-4)
    assert line.frames([0, 40, 41, 120, 121, 2000, 2001]) == [0, 0, 1, 1, 2, 2, 3]


def test_files_that_are_no_video_are_refused_with_the_cause(tmp_path, clip):
    cases = {
        "missing.mp4": "does not exist",
        "empty.mp4": r"is empty \(0 bytes\)",
        "junk.mp4": "not a video container",
        "list.m3u8": "not a video container",
        "concat.mp4": "not a video container",
        "sound.m4a": r"has no video stream \(it holds: audio aac\)",
        "folder.mp4": "is not a file",
        "head.mp4": r"its box 'moov' ends at byte [\d,]+, the file has 200",
    }
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "junk.mp4").write_bytes(b"\x01" + os.urandom(4000))
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "head.mp4").write_bytes(clip.read_bytes()[:200])
    write_audio(tmp_path / "sound.m4a")
    for name, cause in cases.items():
        with pytest.raises(DataError, match=cause) as raised:
            decode(tmp_path / name, every_frame())
        assert name in str(raised.value)


@pytest.mark.parametrize("share", [0.55, 0.8])
def test_a_file_cut_short_is_refused_by_every_reader(tmp_path, clip, share):
    path = cut_short(tmp_path / "cut.mp4", clip, share)
    for backend in ("pyav", "decord"):
        with pytest.raises(
            DataError, match=r"cut\.mp4: cannot be read: its box 'mdat' ends at byte [\d,]+, the file has [\d,]+"
        ):
            decode(path, every_frame(backend))


def test_frames_that_a_header_promises_and_the_file_lacks_are_missed(tmp_path, clip):
    """The last bytes of the frames are there, but empty."""
    content = clip.read_bytes()
    at = content.index(b"mdat")
    path = tmp_path / "holes.mp4"
    path.write_bytes(content[: (keep := (at + 3 * len(content)) // 4)] + bytes(len(content) - keep))
    with pytest.raises(DataError, match=r"holes\.mp4: cannot be read \(h264\) by pyav: "):
        decode(path, every_frame())


def test_a_webm_cut_short_is_noticed_by_its_duration(tmp_path):
    whole = write_clip(tmp_path / "w.webm", frames=250, codec="libvpx-vp9", options={"g": "10"})
    assert decode(whole, every_frame()).total_frames == 250
    with pytest.raises(DataError, match="cut short"):
        decode(cut_short(tmp_path / "c.webm", whole, 0.5), every_frame())


def test_a_clip_of_one_frame_is_refused_where_two_are_needed(tmp_path):
    path = write_clip(tmp_path / "one.mp4", frames=1)
    with pytest.raises(DataError, match=r"one\.mp4: holds 1 frame"):
        decode(path, VideoSampling())
    assert decode(path, every_frame()).indices == [0]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_pixels": 96 * 48 - 1}, "4,608 pixels in a frame, the limit is 4,607"),
        ({"max_frames": 59}, "60 frames, the limit is 59"),
        ({"max_duration": 1.5}, "2 seconds, the limit is 2"),
        ({"max_file_bytes": 100}, "bytes, the limit is 100"),
        ({"max_output_bytes": 1000}, "bytes of frames, the limit is 1,000"),
    ],
)
def test_budgets_are_checked_before_decoding(clip, limit, message):
    with pytest.raises(DataError, match=message):
        decode(clip, every_frame(), limits=DecodeLimits(**limit))


def test_a_video_that_fits_its_budgets_passes(clip):
    check_container(clip, DecodeLimits())
    header = frame_index(clip, DecodeLimits(max_pixels=96 * 48, max_frames=60, max_duration=2)).header
    assert (header.frames, header.duration, header.fps, header.rotation) == (60, 2.0, 30.0, 0)


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "nearest"])
def test_resize_has_the_numbers_of_torchvision(name):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    frames = torch.randint(0, 256, (3, 3, 48, 96), dtype=torch.uint8)
    for size in [(56, 84), (28, 28), (112, 196)]:
        theirs = F.resize(frames, list(size), InterpolationMode(name), antialias=True)
        assert torch.equal(resize(frames, size, name), theirs)


def test_chunks_give_the_same_frames_as_one_piece(clip, monkeypatch):
    whole = decode(clip, every_frame()).pixels
    monkeypatch.setattr("mmrl.data.decoding._CHUNK_BYTES", 5 * 48 * 96 * 3)
    assert torch.equal(decode(clip, every_frame()).pixels, whole)


def test_longer_sound_does_not_make_a_video_look_cut_short(tmp_path):
    """Matroska without frame counts: only the video stream's own duration is compared."""
    import av

    path = tmp_path / "s.mkv"
    with av.open(str(path), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000)
        picture.width, picture.height, picture.pix_fmt = 96, 48, "yuv420p"
        for number in range(10):
            image = av.VideoFrame.from_ndarray(frame(number, 48, 96), format="rgb24")
            container.mux(picture.encode(image))
        container.mux(picture.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000 * 8), np.float32), format="fltp", layout="mono")
        silence.rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    assert frame_index(path, DecodeLimits()).header.duration < 2
    assert decode(path, every_frame()).total_frames == 10


def test_frames_counted_only_while_reading_have_a_limit_too(tmp_path):
    path = write_clip(tmp_path / "a.webm", codec="libvpx-vp9")
    assert frame_index(path, DecodeLimits()).header.frames == 0
    with pytest.raises(DataError, match="60 frames, the limit is 59"):
        decode(path, every_frame(), limits=DecodeLimits(max_frames=59))
