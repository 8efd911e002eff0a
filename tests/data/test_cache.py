"""The cache: what its key covers, and that no accident on disk reaches a policy."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmrl.data.cache import (
    CorruptEntry,
    VideoCache,
    as_metrics,
    clip_key,
    default_root,
    read_frames,
    write_frames,
)
from mmrl.data.video import read_clip
from mmrl.errors import DataError
from mmrl.media import Clip, Frames, VideoSampling
from tests.data.clips import cut_short, numbers

OTHER = {
    "fps": 1.0,
    "min_frames": 2,
    "max_frames": 64,
    "min_pixels": 784,
    "max_pixels": 1000,
    "total_pixels": 10_000,
    "factor": 32,
    "frame_multiple": 1,
    "interpolation": "bilinear",
    "backend": "pyav",
}


def made(key: str, value: int = 0, frames: int = 2) -> Frames:
    pixels = torch.full((frames, 3, 28, 28), value, dtype=torch.uint8)
    return Frames(pixels, list(range(frames)), 29.97, frames, (48, 96), "decord 0.6.0", key)


def key_of(letter: str) -> str:
    return letter * 64


# ---- the key -----------------------------------------------------------------------------------------------


def test_the_table_of_other_values_covers_every_field():
    assert set(OTHER) == set(VideoSampling.model_fields)


@pytest.mark.parametrize("field", sorted(OTHER))
def test_every_sampling_field_changes_the_key(clip, field):
    plain = VideoSampling()
    assert getattr(plain, field) != OTHER[field]
    changed = plain.model_copy(update={field: OTHER[field]})
    assert clip_key([clip], plain, "decord 0.6.0") != clip_key([clip], changed, "decord 0.6.0")


@pytest.mark.parametrize(
    "changes",
    [{"backend": "pyav 18.1.0"}, {"start": 0.0}, {"end": 1.0}, {"fps": 2.0}, {"identity": "content"}],
    ids=lambda c: next(iter(c)),
)
def test_everything_else_the_frames_depend_on_changes_the_key(clip, changes):
    def key(backend="decord 0.6.0", **rest):
        return clip_key([clip], VideoSampling(), backend, **rest)

    assert key() == key()
    assert key() != key(**changes)


def test_another_format_version_is_another_key(clip, monkeypatch):
    before = clip_key([clip], VideoSampling(), "x")
    monkeypatch.setattr("mmrl.data.cache.FORMAT", 1)
    assert clip_key([clip], VideoSampling(), "x") != before


def test_size_time_and_place_of_the_file_change_the_key(tmp_path, clip):
    def key(path: Path, identity="stat") -> str:
        return clip_key([path], VideoSampling(), "x", identity=identity)

    content = clip.read_bytes()
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for path in (first, second):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    keys = {key(first), key(second)}
    os.utime(first, ns=(10**18, 10**18 + 1))
    keys.add(key(first))
    first.write_bytes(content + b"\0")
    os.utime(first, ns=(10**18, 10**18))
    keys.add(key(first))
    assert len(keys) == 4
    assert key(second, "content") == key(clip, "content") != key(first, "content")


def test_a_missing_file_has_no_key(tmp_path):
    with pytest.raises(DataError, match=r"none\.mp4: No such file"):
        clip_key([tmp_path / "none.mp4"], VideoSampling(), "x")


# ---- storing and finding -----------------------------------------------------------------------------------


def test_cached_frames_are_the_decoded_ones_bit_for_bit(tmp_path, clip, sampling):
    fresh = read_clip(clip, sampling, isolate=False)
    cache = VideoCache(tmp_path / "c")
    stored = read_clip(clip, sampling, cache=cache)
    found = read_clip(clip, sampling, cache=VideoCache(tmp_path / "c"))
    assert torch.equal(fresh.pixels, stored.pixels) and torch.equal(fresh.pixels, found.pixels)
    assert {**vars(found), "pixels": 0} == {**vars(fresh), "pixels": 0}
    assert cache.counts == {"misses": 1, "written": 1}
    assert found.pixels.dtype == torch.uint8


def test_the_file_is_plain_safetensors(tmp_path):
    cache = VideoCache(tmp_path)
    cache.put(made(key_of("a"), 7))
    with safe_open(cache.path(key_of("a")), framework="pt") as file:
        assert file.get_tensor("pixels").unique().tolist() == [7]
        assert json.loads(file.metadata()["frames"])["fps"] == 29.97


def test_a_changed_file_is_decoded_again(tmp_path, clip, sampling):
    path, cache = tmp_path / "a.mp4", VideoCache(tmp_path / "c")
    path.write_bytes(clip.read_bytes())
    read_clip(path, sampling, cache=cache)
    path.write_bytes(clip.read_bytes() + b"\0" * 8)
    read_clip(path, sampling, cache=cache)
    assert cache.counts == {"misses": 2, "written": 2}


def test_by_content_a_moved_file_is_found(tmp_path, clip, sampling):
    cache = VideoCache(tmp_path / "c", identity="content")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        read_clip(tmp_path / name, sampling, cache=cache)
    assert cache.counts == {"misses": 1, "written": 1, "hits": 1}


def test_mapped_entries_are_kept_and_the_oldest_let_go(tmp_path):
    cache = VideoCache(tmp_path, mapped=2)
    for letter in "abc":
        cache.put(made(key_of(letter)))
    first = cache.get([key_of("c")])
    assert cache.get([key_of("c")]) is first
    assert list(cache._mapped) == [key_of("b"), key_of("c")]
    assert cache.get([key_of("a")]) is not None


def test_metrics_name_hits_and_their_rate(tmp_path):
    cache = VideoCache(tmp_path)
    assert as_metrics(cache) == {}
    cache.get([key_of("a")])
    cache.put(made(key_of("a")))
    for _ in range(3):
        cache.get([key_of("b"), key_of("a")])
    assert as_metrics(cache) == {
        "cache/hits": 3.0,
        "cache/misses": 1.0,
        "cache/written": 1.0,
        "cache/hit_rate": 0.75,
    }


def test_the_default_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "x"))
    assert default_root() == tmp_path / "x"
    monkeypatch.delenv("MMRL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "y"))
    assert default_root() == tmp_path / "y" / "mmrl"


# ---- accidents ---------------------------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap_metadata(path: Path) -> None:
    """Damage outside the pixels: the metadata's frame rate, at the same length."""
    content = path.read_bytes()
    assert content.count(b"30.0") == 1
    path.write_bytes(content.replace(b"30.0", b"31.0"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: cut_short(path, path, 0.5),
        lambda path: cut_short(path, path, 0.0),
        flip_last_byte,
        swap_metadata,
        lambda path: path.write_bytes(b"not safetensors"),
    ],
    ids=["cut in half", "emptied", "bit flipped", "metadata changed", "overwritten"],
)
def test_damaged_entries_are_counted_and_made_again(tmp_path, clip, sampling, damage):
    good = read_clip(clip, sampling, cache=VideoCache(tmp_path / "c"))
    writer = VideoCache(tmp_path / "c")
    damage(writer.path(good.key))
    cache = VideoCache(tmp_path / "c")
    again = read_clip(clip, sampling, cache=cache)
    assert numbers(again.pixels) == again.indices and again.fps == 30.0
    assert cache.counts == {"corrupt": 1, "misses": 1, "written": 1}
    assert cache.verify().corrupt == 0


def test_an_entry_under_a_wrong_name_is_not_served(tmp_path):
    cache = VideoCache(tmp_path)
    cache.put(made(key_of("a")))
    target = cache.path(key_of("b"))
    target.parent.mkdir()
    os.rename(cache.path(key_of("a")), target)
    assert VideoCache(tmp_path).get([key_of("b")]) is None


def test_verify_finds_damage_that_reading_has_not_met(tmp_path):
    cache = VideoCache(tmp_path)
    for letter in "abc":
        cache.put(made(key_of(letter)))
    flip_last_byte(cache.path(key_of("b")))
    kept = cache.verify(remove=False)
    assert (kept.entries, kept.corrupt, kept.removed) == (2, 1, 0)
    assert str(cache.verify()).endswith("1 corrupt, 1 removed")
    assert not cache.path(key_of("b")).exists()


def test_a_failed_write_leaves_nothing(tmp_path, clip, sampling):
    cache = VideoCache(tmp_path / "c")
    with pytest.raises(DataError):
        read_clip(cut_short(tmp_path / "cut.mp4", clip), sampling, cache=cache)
    frames = made(key_of("a"))
    frames.indices = object()  # not JSON
    with pytest.raises(TypeError):
        cache.put(frames)
    assert list((tmp_path / "c").rglob("*.*")) == []


def test_checksums_are_of_pixels_and_description(tmp_path):
    write_frames(tmp_path / "a", made(key_of("a"), 3))
    assert read_frames(tmp_path / "a", verify=True).size == (48, 96)
    flip_last_byte(tmp_path / "a")
    assert read_frames(tmp_path / "a", verify=False).pixels.shape == (2, 3, 28, 28)
    with pytest.raises(CorruptEntry, match="checksum differs"):
        read_frames(tmp_path / "a", verify=True)


def _write_often(root: str, value: int, start) -> None:
    cache = VideoCache(root, mapped=0)
    start.wait()
    for _ in range(30):
        cache.put(made(key_of("a"), value, frames=16))


def test_two_processes_writing_one_key_leave_one_valid_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [context.Process(target=_write_often, args=(str(tmp_path), v, start)) for v in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    cache = VideoCache(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [f"{key_of('a')}.safetensors"]
    assert len(cache.get([key_of("a")]).pixels.unique()) == 1
    assert (cache.verify().entries, cache.verify().corrupt) == (1, 0)


# ---- budget ------------------------------------------------------------------------------------------------


def aged(cache: VideoCache, letters: str) -> int:
    """Entries last used one after another, a first; returns the size of one."""
    for age, letter in enumerate(letters):
        cache.put(made(key_of(letter)))
        os.utime(cache.path(key_of(letter)), ns=(age * 10**9, age * 10**9))
    return cache.path(key_of(letters[0])).stat().st_size


def test_prune_removes_the_least_recently_used(tmp_path):
    cache = VideoCache(tmp_path)
    size = aged(cache, "abcd")
    cache.get([key_of("a")])  # used again: now the youngest
    report = cache.prune(2 * size)
    assert (report.entries, report.removed, report.bytes) == (2, 2, 2 * size)
    assert {p.stem[0] for p in tmp_path.rglob("*.safetensors")} == {"a", "d"}


def test_writing_past_the_budget_evicts(tmp_path):
    size = aged(VideoCache(tmp_path), "ab")
    cache = VideoCache(tmp_path, budget_bytes=2 * size + size // 2)
    cache.put(made(key_of("c")))
    assert {p.stem[0] for p in tmp_path.rglob("*.safetensors")} == {"b", "c"}
    assert cache.counts["evicted"] == 1


def test_frames_outlive_their_eviction(tmp_path):
    cache = VideoCache(tmp_path, budget_bytes=1)
    frames = cache.put(made(key_of("a"), 9))
    assert not cache.path(key_of("a")).exists()
    assert frames.pixels.unique().tolist() == [9]
    assert cache.get([key_of("a")]) is None


def test_stale_temporaries_go_and_fresh_ones_stay(tmp_path):
    cache = VideoCache(tmp_path)
    old, new = cache.temporary(), cache.temporary()
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    cache.prune(10**9)
    assert new.exists() and not old.exists()


def test_build_fills_reports_and_finds_again(tmp_path, clip, sampling):
    cache = VideoCache(tmp_path / "c")
    clips = [Clip(clip), Clip(clip, 0.5), tmp_path / "none.mp4"]
    first, second = (cache.build(clips, sampling, workers=2) for _ in range(2))
    assert (first.clips, first.written, first.found) == (3, 2, 0)
    assert (second.written, second.found) == (0, 2)
    assert "does not exist" in second.failed[str(tmp_path / "none.mp4")]
    assert str(first).startswith("3 clips: 2 decoded, 0 found, 1 failed\n")
