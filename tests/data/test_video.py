"""One way from file to frames: equal to qwen-vl-utils, equal apart and here, and safe from what files do."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.data import video
from mmrl.data.cache import VideoCache
from mmrl.data.decoder_process import DecoderPool, decoders
from mmrl.data.frame_index import DecodeLimits
from mmrl.data.video import prefetch, read_clip
from mmrl.errors import DataError
from mmrl.media import Clip, FrameList, OwnSampling, VideoSampling
from tests.data.clips import cut_short, frame, numbers, write_clip, write_rotated


def described(frames) -> dict:
    return {k: v for k, v in vars(frames).items() if k != "pixels"}


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("bounds", [{}, {"video_start": 0.4, "video_end": 1.7}])
@pytest.mark.parametrize("budget", [{}, {"total_pixels": 8 * 32 * 32 * 8}])
def test_frames_are_those_of_qwen_vl_utils(tmp_path, patch, bounds, budget):
    """Indices, sizes, rates and pixels, on a clip larger than the budget."""
    from qwen_vl_utils import process_vision_info

    path = write_clip(tmp_path / "a.mp4", frames=90, size=(240, 416), fps=25)
    asked = {"fps": 3, "min_frames": 4, "max_frames": 8, "min_pixels": 4 * 28 * 28, "max_pixels": 64 * 32 * 32}
    part = {"type": "video", "video": str(path), **asked, **bounds, **budget}
    _, [(theirs, metadata)], kwargs = process_vision_info(
        [{"role": "user", "content": [part]}],
        return_video_kwargs=True,
        return_video_metadata=True,
        image_patch_size=patch,
    )
    sampling = VideoSampling(factor=2 * patch, **asked, **budget)
    clip = Clip(path, bounds.get("video_start"), bounds.get("video_end"))
    ours = read_clip(clip, sampling, isolate=False)
    assert ours.indices == metadata["frames_indices"]
    assert ours.total_frames == metadata["total_num_frames"]
    assert ours.fps == metadata["fps"]
    assert metadata["video_backend"] == "decord" and ours.backend.startswith("pyav")
    assert kwargs == {"do_sample_frames": False}
    assert ours.pixels.shape == theirs.shape
    assert torch.equal(ours.pixels.float(), theirs)  # theirs are floats, but whole numbers: uint8 loses nothing


def test_sample_rate_is_that_of_qwen_vl_utils(clip, sampling):
    from qwen_vl_utils.vision_process import fetch_video

    part = {"video": str(clip), "fps": 4, "max_frames": 16, "min_pixels": 784, "max_pixels": 65536}
    _, rate = fetch_video(part, return_video_sample_fps=True)
    assert read_clip(clip, sampling, isolate=False).sample_fps == pytest.approx(rate)


@pytest.mark.parametrize("cached", [False, True])
def test_a_decoder_process_returns_what_this_process_would(clip, sampling, tmp_path, cached):
    cache = VideoCache(tmp_path / "cache") if cached else None
    apart, here = read_clip(clip, sampling, cache=cache), read_clip(str(clip), sampling, isolate=False)
    assert torch.equal(apart.pixels, here.pixels)
    assert described(apart) == described(here)
    assert numbers(apart.pixels) == apart.indices == [0, 8, 17, 25, 34, 42, 51, 59]
    assert apart.timestamps[-1] == pytest.approx(59 / 30)


def test_frames_in_shared_memory_leave_no_file_behind(clip, sampling):
    def left() -> list[str]:
        return [n for n in os.listdir("/dev/shm") if n.startswith("mmrl-")] if os.path.isdir("/dev/shm") else []

    before = left()
    frames = read_clip(clip, sampling)
    assert left() == before
    assert numbers(frames.pixels) == frames.indices  # the mapping outlives the file


def test_the_reader_is_named_and_counted(tmp_path, clip, sampling):
    path = write_rotated(tmp_path / "r.mp4", clip, 90)
    before = video.counts["decoded/pyav"]
    cache = VideoCache(tmp_path / "cache")
    first, second = (read_clip(path, sampling, cache=cache) for _ in range(2))
    assert first.backend == second.backend and first.backend.startswith("pyav ")
    assert video.counts["decoded/pyav"] == before + 1
    assert cache.counts == {"misses": 1, "written": 1, "hits": 1}
    with pytest.raises(DataError, match="backend auto may read it"):
        read_clip(path, sampling.model_copy(update={"backend": "decord"}))


def test_a_clip_is_read_by_its_own_rates_and_limits(clip, sampling, tmp_path):
    cache = VideoCache(tmp_path / "cache")
    own = Clip(clip, 0.5, 1.5, OwnSampling(fps=10, max_frames=6, min_pixels=28 * 28, max_pixels=4 * 28 * 28))
    frames = read_clip(own, sampling, cache=cache)
    assert len(frames.indices) == 6 and (frames.indices[0], frames.indices[-1]) == (15, 45)
    assert frames.pixels.shape[2] * frames.pixels.shape[3] <= 4 * 28 * 28
    assert len(read_clip(Clip(clip, 0.5, 1.5), sampling, cache=cache).indices) == 4 and cache.counts["misses"] == 2
    with pytest.raises(DataError, match=r"h264\.mp4: the clip's own limits and the run's do not fit.*max_pixels=100"):
        read_clip(Clip(clip, asks=OwnSampling(min_pixels=2000, max_pixels=100)), sampling)
    with pytest.raises(DataError, match=r"h264\.mp4: the clip's own limits .*max_frames: .* got 0"):
        read_clip(Clip(clip, asks=OwnSampling(max_frames=0)), sampling)


@pytest.mark.parametrize("number", [7, 29, 33])
def test_a_start_at_the_time_of_a_frame_is_that_frame(clip, sampling, number):
    """1.1 s is frame 33 at 30 frames a second, although 1.1 * 30 is more than 33 in floats."""
    frames = read_clip(Clip(clip, start=number / 30, end=(number + 9) / 30), sampling, isolate=False)
    assert (frames.indices[0], frames.indices[-1], frames.total_frames) == (number, number + 9, 10)


def test_a_hung_decoder_is_stopped_and_only_its_file_lost(tmp_path, clip, sampling):
    read_clip(clip, sampling)  # at least one decoder is warm
    with decoders.borrow() as decoder:
        os.kill(decoder.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"h264\.mp4: took more than 0\.5 s and was stopped"):
        read_clip(clip, sampling, limits=DecodeLimits(timeout=0.5))
    assert numbers(read_clip(clip, sampling).pixels)[-1] == 59


def crash_next(times: int):
    """In place of `DecoderPool._take`: the decoders taken next are killed before they can answer."""
    take, killed = DecoderPool._take, []

    def taken(pool: DecoderPool):
        decoder = take(pool)
        if len(killed) < times:
            killed.append(decoder.pid)
            os.kill(decoder.pid, signal.SIGSEGV)
        return decoder

    return taken


def test_a_file_whose_decoder_was_killed_is_tried_once_more(clip, sampling, monkeypatch):
    before = video.counts["decoder/restarted"]
    monkeypatch.setattr(DecoderPool, "_take", crash_next(1))
    assert numbers(read_clip(clip, sampling).pixels)[-1] == 59
    assert video.counts["decoder/restarted"] == before + 1


def test_a_file_that_two_decoders_died_of_is_named_and_others_are_read(clip, sampling, monkeypatch):
    monkeypatch.setattr(DecoderPool, "_take", crash_next(2))
    with pytest.raises(DataError, match=r"h264\.mp4: the decoder was killed by SIGSEGV, twice"):
        read_clip(clip, sampling)
    assert numbers(read_clip(clip, sampling).pixels)[-1] == 59


def test_a_decoder_that_died_while_idle_costs_no_file(clip, sampling):
    read_clip(clip, sampling)
    with decoders.borrow() as decoder:
        pass
    os.kill(decoder.pid, signal.SIGKILL)
    decoder._process.wait()
    assert numbers(read_clip(clip, sampling).pixels)[-1] == 59


def test_decoders_need_no_main_guard_and_end_with_their_caller(clip, tmp_path):
    """A plain script without `if __name__ == "__main__"`, killed: its decoder sees the pipe close and ends."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from mmrl.data.video import read_clip\nfrom mmrl.data.decoder_process import DecoderPool, decoders\n"
        "from mmrl.media import VideoSampling\n"
        f"read_clip({str(clip)!r}, VideoSampling())\n"
        "with decoders.borrow() as d: print(d.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pid = int(ended.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        threading.Event().wait(0.05)
    pytest.fail("the decoder outlived its caller")


def test_prefetch_keeps_order_and_hands_over_errors(tmp_path, clip, sampling):
    bad = cut_short(tmp_path / "cut.mp4", clip)
    clips = [Clip(clip), Clip(bad), Clip(clip, 0.5, 1.5), Clip(tmp_path / "none.mp4"), Clip(clip, 1.0)]
    results = list(prefetch(clips, sampling, workers=2))
    assert [c for c, _ in results] == clips
    assert [isinstance(r, DataError) for _, r in results] == [False, True, False, True, False]
    assert results[2][1].indices == read_clip(clips[2], sampling, isolate=False).indices


def test_prefetch_reads_ahead_but_not_further_than_asked(clip, sampling):
    taken = []

    def source():
        for i in range(6):
            taken.append(i)
            yield clip

    stream = prefetch(source(), sampling, workers=1, ahead=3, isolate=False)
    next(stream)
    assert taken == [0, 1, 2]
    stream.close()


def test_frame_images_are_a_clip_too(tmp_path, sampling):
    paths = []
    for i in range(9):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(frame(i, 48, 96)).save(paths[-1])
    cache = VideoCache(tmp_path / "cache")
    first = read_clip(FrameList(tuple(paths), fps=3.0), sampling, cache=cache)
    assert first.indices == numbers(first.pixels) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert (first.fps, first.total_frames, first.size, first.backend) == (3.0, 9, (48, 96), "images")
    again = read_clip(FrameList(tuple(paths), fps=3.0), sampling, cache=cache)
    assert torch.equal(first.pixels, again.pixels) and cache.counts["hits"] == 1
    assert read_clip([str(p) for p in paths], sampling).fps == 2.0
    Image.fromarray(frame(8, 48, 98)).save(paths[-1])
    with pytest.raises(DataError, match=r"8\.png: is 98x48, but the frame .*0\.png is 96x48"):
        read_clip(paths, sampling)
    with pytest.raises(DataError, match="no image"):
        read_clip([], sampling)


def test_a_list_of_one_frame_says_so(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png and the frames after it: holds 1 frame"):
        read_clip([tmp_path / "a.png"], VideoSampling())


def test_the_model_sees_the_same_with_and_without_the_cache(clip, tmp_path):
    """pixel_values_videos and video_grid_thw of the processor: qwen-vl-utils, ours fresh, ours cached."""
    from qwen_vl_utils.vision_process import fetch_video
    from transformers import Qwen2VLVideoProcessor

    asked = {"fps": 4, "max_frames": 8, "min_pixels": 28 * 28, "max_pixels": 64 * 28 * 28}
    cache = VideoCache(tmp_path / "cache")
    read_clip(clip, VideoSampling(**asked), cache=cache)
    cached = read_clip(clip, VideoSampling(**asked), cache=cache)
    assert cache.counts["hits"] == 1
    processor = Qwen2VLVideoProcessor()
    sources = [
        fetch_video({"video": str(clip), **asked}),
        read_clip(clip, VideoSampling(**asked)).pixels,
        cached.pixels,
    ]
    made = [processor(videos=[v], do_resize=False, do_sample_frames=False, return_tensors="pt") for v in sources]
    for other in made[1:]:
        assert torch.equal(made[0]["video_grid_thw"], other["video_grid_thw"])
        assert torch.equal(made[0]["pixel_values_videos"], other["pixel_values_videos"])
    assert made[0]["video_grid_thw"].tolist() == [[4, 4, 6]]


def test_limits_travel_to_the_decoder(clip, sampling):
    with pytest.raises(DataError, match="60 frames, the limit is 59"):
        read_clip(clip, sampling, limits=DecodeLimits(max_frames=59))
