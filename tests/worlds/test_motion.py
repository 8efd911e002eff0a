"""Clips are decoded again from their mp4 files, and answers derived by tracking colours."""

import re

import av
import numpy as np
import pytest
from scipy import ndimage

from mmrl.data.worlds import open_world
from mmrl.data.worlds.scenes import BACKGROUNDS, COLORS
from mmrl.media import write_video
from tests.worlds.test_stills import NAMES, named_pixels

WAYS = {(-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}


def decoded(path) -> tuple[list, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        return [frame.to_image() for frame in container.decode(stream)], float(stream.average_rate)


def tracks(frames) -> dict[str, list]:
    """{colour: [centre (x, y) or None per frame]}; small specks are what compression leaves at edges."""
    seen: dict[str, list] = {name: [] for name in COLORS}
    for frame in frames:
        named = named_pixels(frame)
        for name, track in seen.items():
            core = ndimage.binary_erosion(named == NAMES.index(name), iterations=2)
            track.append(tuple(np.argwhere(core).mean(0)[::-1]) if core.sum() >= 4 else None)
    return {name: track for name, track in seen.items() if any(track)}


def sign(value: float) -> int:
    return int(value > 4) - int(value < -4)


def things(frame) -> int:
    named = named_pixels(frame)
    colored = np.isin(named, [NAMES.index(name) for name in COLORS])
    _, count = ndimage.label(ndimage.binary_erosion(colored, iterations=2))
    return count


def answer(text: str, frames: list, fps: float) -> str:
    seen = tracks(frames)
    color = next((w for w in re.findall("[a-z]+", text) if w in COLORS), None)
    first = {name: next(t for t, at in enumerate(track) if at) for name, track in seen.items()}
    if text.startswith("Which way"):
        start, end = seen[color][0], seen[color][-1]
        vertical, horizontal = WAYS.get((0, sign(end[1] - start[1]))), WAYS.get((sign(end[0] - start[0]), 0))
        return " ".join(way for way in (vertical, horizontal) if way)
    if "first" in text:
        return min(first, key=first.get)
    if "last" in text:
        return max(first, key=first.get)
    shown = [t for t, at in enumerate(seen[color]) if at]
    return f"{shown[0] / fps:.1f} to {(shown[-1] + 1) / fps:.1f}"


@pytest.mark.parametrize("level", range(1, 6))
def test_answers_follow_from_the_decoded_file(level, tmp_path):
    world = open_world("motion", split="test", difficulty=level, size=25, root=tmp_path)
    skills = set()
    for index in range(25):
        prompt = world[index]
        frames, fps = decoded(prompt.videos[0].path)
        skills.add(prompt.columns["skill"])
        assert fps == 4 and len(frames) == {1: 8, 2: 8, 3: 12, 4: 16, 5: 16}[level]
        assert frames[0].size == (64, 64)
        if prompt.columns["skill"] != "count":
            assert answer(prompt.text, frames, fps) == prompt.columns["solution"], prompt.id
        else:  # things never leave in these clips, so the last frame shows them all
            others = len([e for e in prompt.columns["scene"]["objects"] if e["shape"] + "s" not in text_of(prompt)])
            assert things(frames[-1]) - others == int(prompt.columns["solution"]), prompt.id
    assert skills == {"direction", "order", "interval", "count"}


def text_of(prompt) -> str:
    return prompt.text.replace("crosses", "crosss")


def test_a_clip_played_backwards_has_other_answers(tmp_path):
    world = open_world("motion", difficulty=2, size=40, root=tmp_path)
    for index in range(40):
        prompt = world[index]
        if prompt.columns["skill"] == "direction":
            frames, fps = decoded(prompt.videos[0].path)
            assert answer(prompt.text, frames[::-1], fps) != prompt.columns["solution"]


def test_a_clip_is_written_once_under_the_name_of_its_content(tmp_path):
    world = open_world("motion", size=2, root=tmp_path)
    path = world[0].videos[0].path
    written = path.stat()
    assert open_world("motion", size=2, root=tmp_path)[0].videos[0].path == path
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert world[1].videos[0].path != path


def test_a_clip_whose_writing_fails_leaves_no_file(tmp_path):
    from PIL import Image

    frames = [Image.new("RGB", (64, 64)), "not a frame"]
    with pytest.raises(AttributeError):
        write_video(tmp_path / "clip.mp4", frames, 4)
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize(("variable", "folder"), [("MMRL_CACHE", "."), ("XDG_CACHE_HOME", "mmrl")])
def test_the_default_folder_is_the_users_cache(tmp_path, monkeypatch, variable, folder):
    monkeypatch.delenv("MMRL_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    path = open_world("motion", size=1)[0].videos[0].path
    assert path.is_relative_to(tmp_path / folder / "worlds" / "motion") and path.exists()


def test_backgrounds_are_not_colors():
    assert not set(BACKGROUNDS) & set(COLORS)
