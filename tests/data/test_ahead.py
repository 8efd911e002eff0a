"""Prompts announced are ready when asked for, whatever goes wrong with them is said then, and they are the same."""

import threading

import pytest

from mmrl.data.ahead import Ahead
from mmrl.data.cache import VideoCache
from mmrl.data.datasets import open_dataset
from mmrl.data.video import read_clip
from mmrl.errors import DataError
from mmrl.record import Prompt
from mmrl.selection.prompts import Prefetching
from tests.data.clips import cut_short, write_clip


class Counted(list):
    """Prompts that know how often each was opened, and that two threads never met in them."""

    def __init__(self, count: int):
        super().__init__(Prompt(f"p{i}", [], [], [f"clip {i}"], {}) for i in range(count))
        self.opened: list[int] = []
        self._busy = threading.Lock()

    def __getitem__(self, index):
        assert self._busy.acquire(blocking=False), "asked by two threads at once"
        try:
            self.opened.append(index)
            return super().__getitem__(index)
        finally:
            self._busy.release()


def test_announced_prompts_are_opened_and_read_once_before_they_are_asked_for():
    prompts, read = Counted(8), []
    with Ahead(prompts, 2, read.append) as ahead:
        assert isinstance(ahead, Prefetching) and len(ahead) == 8
        ahead.prefetch([5, 2, 5, 7])
        ahead.wait()
        assert sorted(prompts.opened) == [2, 5, 7]
        assert sorted(read) == ["clip 2", "clip 5", "clip 7"]
        assert [ahead[i].id for i in (5, 2, -1)] == ["p5", "p2", "p7"]
        assert len(prompts.opened) == len(read) == 3
        assert ahead[0].id == "p0", "what nobody announced is opened as ever"
        assert ahead[5].id == "p5", "a second time too"
        assert len(read) == 3, "and its clip is left to the policy"


def test_prompts_are_begun_in_the_order_announced():
    read, ahead = [], Ahead(Counted(6), 1, lambda clip: read.append(clip))
    ahead.prefetch([4, 1, 3])
    ahead.prefetch([4, 1, 3, 0])
    ahead.wait()
    assert read == ["clip 4", "clip 1", "clip 3", "clip 0"]


def test_what_is_announced_no_more_is_dropped():
    gate, read = threading.Event(), []

    def wait_and_read(clip):
        assert gate.wait(60)
        read.append(clip)

    with Ahead(Counted(4), 1, wait_and_read) as ahead:
        ahead.prefetch([0, 1, 2])
        ahead.prefetch([0, 3])
        gate.set()
        ahead.wait()
        assert read == ["clip 0", "clip 3"]


def test_closing_drops_what_has_not_begun():
    began, gate, read = threading.Event(), threading.Event(), []

    def wait_and_read(clip):
        began.set()
        assert gate.wait(60)
        read.append(clip)

    ahead = Ahead(Counted(4), 1, wait_and_read)
    ahead.prefetch([0, 1, 2])
    assert began.wait(60)
    threading.Timer(0.05, gate.set).start()
    ahead.close()
    assert read == ["clip 0"]
    assert ahead[1].id == "p1"


def test_an_error_met_ahead_is_raised_where_the_prompt_is_asked_for_and_only_there():
    def read(clip):
        if clip != "clip 0":
            raise DataError(f"{clip}: cannot be decoded")

    with Ahead(Counted(3), 2, read) as ahead:
        ahead.prefetch([0, 1, 2])
        ahead.wait()
        assert ahead[0].id == "p0"
        with pytest.raises(DataError, match="clip 1: cannot be decoded"):
            _ = ahead[1]
        ahead.prefetch([])  # nobody asks for 2


def test_clips_wait_in_the_cache_and_a_bad_one_says_what_it_says_without_decoding_ahead(tmp_path, sampling):
    write_clip(tmp_path / "a.mp4")
    write_clip(tmp_path / "b.mp4", frames=40)
    cut_short(tmp_path / "cut.mp4", tmp_path / "a.mp4")
    rows = [{"prompt": "What happens?", "video": str(tmp_path / name)} for name in ("a.mp4", "b.mp4", "cut.mp4")]
    dataset = open_dataset(rows, media_root=tmp_path)
    with pytest.raises(DataError) as plain:
        read_clip(dataset[2].videos[0], sampling)
    cache = VideoCache(tmp_path / "cache")
    with Ahead(dataset, 2, lambda clip: read_clip(clip, sampling, cache=cache)) as ahead:
        ahead.prefetch([0, 1, 2])
        ahead.wait()
        assert cache.counts["written"] == 2 and cache.counts["hits"] == 0
        for index in (0, 1):
            prompt = ahead[index]
            assert prompt == dataset[index]
            assert ahead.ids() == dataset.ids()
            stored = read_clip(prompt.videos[0], sampling, cache=cache)
            assert (stored.pixels == read_clip(prompt.videos[0], sampling).pixels).all()
        assert cache.counts["hits"] == 2 and cache.counts["written"] == 2
        with pytest.raises(DataError) as met_ahead:
            _ = ahead[2]
    assert str(met_ahead.value) == str(plain.value) and "cut.mp4" in str(plain.value)
