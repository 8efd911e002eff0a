"""Containers and codecs, cut, shifted, rotated and broken: every frame returned is the one a player shows then.

Each clip is asked for by times that its packets bear, cold and from the cache, of both readers.
"""

import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmrl.data.cache import VideoCache
from mmrl.data.decoding import decode
from mmrl.data.frame_index import DecodeLimits, FrameIndex, frame_index
from mmrl.data.video import read_clip
from mmrl.errors import DataError
from mmrl.media import Clip, VideoSampling
from tests.data.clips import bars, copied, shown, write_barred, write_clip, write_displayed, write_rotated

OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
HEVC = {"x265-params": "keyint=12:min-keyint=12:open-gop=1:log-level=none"}
B = {"g": "12", "bf": "2"}
CORPUS = {
    "h264.mp4": ("libx264", B),
    "h264-open.mp4": ("libx264", OPEN),
    "h264-fragments.mp4": ("libx264", B),
    "hevc.mp4": ("libx265", HEVC),
    "mpeg4.mp4": ("mpeg4", B),
    "h264.mov": ("libx264", B),
    "mjpeg.mov": ("mjpeg", {}),
    "h264.3gp": ("libx264", B),
    "mpeg4.m4v": ("mpeg4", {"g": "12"}),
    "h264.mkv": ("libx264", B),
    "mpeg2.mkv": ("mpeg2video", B),
    "vp8.webm": ("libvpx", {"g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12"}),
    "vp8.ogg": ("libvpx", {"g": "12"}),
    "mpeg4-b.avi": ("mpeg4", B),
    "h264.avi": ("libx264", B),
    "mjpeg.avi": ("mjpeg", {}),
    "h264.ts": ("libx264", B),
    "hevc.ts": ("libx265", HEVC),
    "mpeg2.ts": ("mpeg2video", B),
    "mpeg1.mpg": ("mpeg1video", B),
    "mpeg2.mpg": ("mpeg2video", B),
    "mpeg2.vob": ("mpeg2video", B),
    "flv1.flv": ("flv", {"g": "12"}),
    "h264.flv": ("libx264", B),
    "h264.m2ts": ("libx264", B),
    "wmv2.wmv": ("wmv2", {"g": "12"}),
    "wmv1.wmv": ("wmv1", {"g": "12"}),
    "h264.asf": ("libx264", B),
    "gif.gif": ("gif", {}),
}
DECORD = {"h264.mp4", "h264-fragments.mp4", "h264.mov", "mjpeg.mov", "h264.3gp", "mpeg4.m4v"}
DECORD |= {"h264.mkv", "vp8.webm", "vp9.webm"}
CHECKED = ("h264", "mpeg4", "mpeg2", "mpeg1", "flv1")  # codecs whose bits tell of most damage


def sampling(frames: int, backend: str = "auto") -> VideoSampling:
    return VideoSampling(
        fps=None, min_frames=1, max_frames=frames, min_pixels=28 * 28, frame_multiple=1, backend=backend
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    return {
        name: write_barred(folder / name, *made, container=fragments if "fragments" in name else None)
        for name, made in CORPUS.items()
    }


def variants(path: Path, folder: Path) -> list[Path]:
    """The file; cut at a key frame and within a group; its end cut off; moved in time. Copies, nothing is encoded."""
    name, intra = path.name, path.suffix == ".gif"
    made = [path, copied(folder / f"end-{name}", path, last=50), copied(folder / f"later-{name}", path, seconds=1.7)]
    if not intra:  # the frames of a GIF after the first are differences
        keys = [i for i, (_, is_key) in enumerate(packets(path)) if is_key]
        later = next((k for k in keys if k > 15), keys[-1])
        made.append(copied(folder / f"key-{name}", path, first=later))
        made.append(copied(folder / f"within-{name}", path, first=17))
    if not intra and path.suffix != ".ogg":  # Ogg knows no time before 0
        made.append(copied(folder / f"before-{name}", path, seconds=-0.9))
    return made


def packets(path: Path) -> list[tuple[int, bool]]:
    with av.open(str(path)) as file:
        return [(p.pts, p.is_keyframe) for p in file.demux(video=0) if p.size]


def places(path: Path) -> list[tuple[int, int]]:
    """Byte and size of each packet."""
    with av.open(str(path)) as file:
        return [(p.pos, p.size) for p in file.demux(video=0) if p.size and p.pos is not None]


def expected(player: list[tuple[float, int]], times: list[float]) -> list[int]:
    """The number on screen at each time; stamps are rounded, to 10 ms in GIF."""
    starts = np.asarray([second for second, _ in player])
    return [player[int(np.searchsorted(starts, t + 0.011, side="right")) - 1][1] for t in times]


def check_reading(path: Path, cache: VideoCache, backend: str = "auto") -> None:
    player = shown(path)
    last = len(player) - 1
    whole = read_clip(path, sampling(20, backend), cache=cache, isolate=False)
    assert bars(whole.pixels) == expected(player, whole.timestamps), path.name
    assert whole.timestamps[-1] == pytest.approx(player[last][0], abs=0.011), path.name
    for first, end in ((0, 3), (5, last), (last // 2, last // 2 + 4)):
        asked = Clip(path, start=player[first][0], end=player[end][0])
        part = read_clip(asked, sampling(end - first + 1, backend), cache=cache, isolate=False)
        if len(part.indices) == end - first + 1 == part.total_frames:
            assert bars(part.pixels) == [number for _, number in player[first : end + 1]], path.name
        assert bars(part.pixels)[0] == player[first][1] and bars(part.pixels)[-1] == player[end][1], path.name
        again = read_clip(asked, sampling(end - first + 1, backend), cache=VideoCache(cache.root))
        assert torch.equal(part.pixels, again.pixels) and part.indices == again.indices


@pytest.mark.parametrize("name", CORPUS)
def test_frames_are_those_a_player_shows(corpus, tmp_path, name):
    assert shown(corpus[name]) == [(pytest.approx(i / 25, abs=0.011), i) for i in range(60)]  # the player is right
    cache = VideoCache(tmp_path / "cache")
    for path in variants(corpus[name], tmp_path):
        check_reading(path, cache)


@pytest.mark.parametrize("name", CORPUS)
def test_decord_is_right_or_refuses(corpus, tmp_path, name):
    cache, refused = VideoCache(tmp_path / "cache"), []
    for path in variants(corpus[name], tmp_path):
        try:
            check_reading(path, cache, "decord")
        except DataError as error:
            assert path.name in str(error) and "by decord: " in str(error)
            refused.append(path)
    assert (corpus[name] in refused) == (name not in DECORD)


@pytest.mark.parametrize("name", CORPUS)
def test_a_file_cut_short_is_refused_wherever_it_is_cut(corpus, tmp_path, name):
    content = corpus[name].read_bytes()
    draw = random.Random(name)
    places = [
        len(content) - 1,
        len(content) - 40,
        *(draw.randrange(len(content) // 10, len(content)) for _ in range(8)),
    ]
    broken = tmp_path / f"cut-{name}"
    for place in places:
        broken.write_bytes(content[:place])
        with pytest.raises(DataError, match=f"cut-{name}"):
            decode(broken, sampling(4))


@pytest.mark.parametrize("name", [n for n in CORPUS if n.startswith(CHECKED)])
def test_damaged_frames_are_never_returned(corpus, tmp_path, name):
    """24 bytes of a packet zeroed: refused, or frames are right; one whose packet is lost leaves a gap in time."""
    content, refused = corpus[name].read_bytes(), 0
    large = sorted(places(corpus[name]), key=lambda p: -p[1])[:6]
    broken = tmp_path / f"damaged-{name}"
    for place in (place + size // 2 for place, size in large):
        broken.write_bytes(content[:place] + bytes(24) + content[place + 24 :])
        try:
            made = decode(broken, sampling(60))
        except DataError as error:
            assert f"damaged-{name}" in str(error)
            refused += 1
        else:
            assert all(slot - 1 <= n <= slot for slot, n in zip(made.indices, bars(made.pixels), strict=True))
    assert refused >= 1


HASHED = {"x265-params": "keyint=12:min-keyint=12:hash=1:log-level=none"}


@pytest.mark.parametrize("name", ["h264.mkv", "mpeg2.mkv", "vp8.ogg", "hevc-hashed.mp4"])
def test_a_flipped_bit_is_seen_where_there_are_checksums(corpus, tmp_path, name):
    """Of Matroska's clusters, Ogg's pages, HEVC's pictures. Bits that no picture depends on may differ."""
    whole = corpus[name] if name in corpus else write_barred(tmp_path / name, "libx265", HASHED)
    content, draw, clean = whole.read_bytes(), random.Random(name), decode(whole, sampling(60)).pixels
    broken, refused = tmp_path / f"flipped-{name}", 0
    for _ in range(12):
        at, size = draw.choice(places(whole))
        place = at + draw.randrange(size)
        broken.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        try:
            assert torch.equal(decode(broken, sampling(60)).pixels, clean)
        except DataError as error:
            refused += f"flipped-{name}" in str(error)
    assert refused == 12 or (name == "hevc-hashed.mp4" and refused >= 9)


def test_a_gif_that_lacks_pixels_is_refused(corpus, tmp_path):
    """Codes of its first picture changed: it unpacks to another number of pixels, and FFmpeg would show what it got."""
    content, broken = bytearray(corpus["gif.gif"].read_bytes()), tmp_path / "broken.gif"
    at, size = places(corpus["gif.gif"])[0]
    content[at + size - 8] ^= 0xFF
    broken.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.gif: .*a picture before byte [\d,]+ holds [\d,]+ of 4,608 pixels"):
        decode(broken, sampling(4))


def test_a_transport_stream_cut_between_its_packets_is_refused_or_ends_with_a_whole_frame(corpus, tmp_path):
    content, cut = corpus["mpeg2.ts"].read_bytes(), tmp_path / "cut.ts"
    video = [at for at in range(0, len(content), 188) if content[at + 1] & 1 and content[at + 2] == 0]
    starts = [at for at in video if content[at + 1] & 0x40]
    for end in [at for at in video if at not in starts][-6:]:
        cut.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"cut\.ts"):
            decode(cut, sampling(8))
    for end in starts[-12::2]:  # nothing in any byte tells
        cut.write_bytes(content[:end])
        made = decode(cut, sampling(8))
        assert bars(made.pixels) == made.indices, end


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_a_rotated_cut_comes_upright(corpus, tmp_path, clockwise):
    flat = copied(tmp_path / "flat.mp4", corpus["h264.mp4"], seconds=-0.9)
    made = decode(write_rotated(tmp_path / "turned.mp4", flat, clockwise), sampling(12))
    back = torch.rot90(made.pixels, clockwise // 90, (2, 3))
    assert bars(back) == bars(decode(flat, sampling(12)).pixels) and len(set(bars(back))) == 12


MIRRORS = {(-1, 0, 0, 1): (3,), (1, 0, 0, -1): (2,), (-1, 0, 0, -1): (2, 3)}


@pytest.mark.parametrize("matrix", [*MIRRORS, (0, 1, 1, 0)])
def test_a_mirror_image_is_shown_as_one(tmp_path, matrix):
    """PyAV's own rotation takes the first for upside down, and the second for upright."""
    made = write_clip(tmp_path / "a.mp4", 12)  # red above, so that up and down differ
    barred = write_barred(tmp_path / "b.mp4", "libx264", {}, 12)  # left and right differ
    for path in (made, barred):
        turned = decode(write_displayed(tmp_path / "turned.mp4", path, matrix), sampling(4)).pixels
        flat = decode(path, sampling(4)).pixels
        right = flat.transpose(2, 3) if matrix not in MIRRORS else flat.flip(MIRRORS[matrix])
        assert (turned.int() - right.int()).abs().max() <= 1  # the resize rounds from the left
    with pytest.raises(DataError, match="decord: misreads a rotation by"):
        decode(tmp_path / "turned.mp4", sampling(4, "decord"))


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
def test_frames_left_out_and_a_varying_rate_keep_their_time(tmp_path, name):
    """Frames 0 to 19 one by one, then every third: on screen until the next one comes."""
    at = [*range(20), *range(22, 142, 3)]
    path = write_barred(tmp_path / name, "mpeg4" if name == "v.avi" else "libx264", {"g": "12"}, 60, at=at)
    made = decode(path, sampling(16))
    assert shown(path)[-1] == (pytest.approx(at[-1] / 25, abs=1e-3), 59)
    assert made.total_frames == 140 and made.fps == pytest.approx(25)
    assert bars(made.pixels) == [max(i for i, a in enumerate(at) if a <= slot) for slot in made.indices]
    part = decode(path, sampling(3), start=at[30] / 25, end=at[32] / 25)
    assert bars(part.pixels) == [30, 31, 32]


def test_the_index_is_kept_with_the_clips_and_believed_only_if_sound(corpus, tmp_path, monkeypatch):
    cache, path = VideoCache(tmp_path / "cache"), corpus["h264.ts"]
    read_clip(path, sampling(4), cache=cache)
    (stored,) = cache.root.glob("??/*.index")
    assert stored == cache.index_path(path)
    fresh, kept = frame_index(path, DecodeLimits()), FrameIndex.load(stored)
    assert np.array_equal(fresh.stamps, kept.stamps) and np.array_equal(fresh.keys, kept.keys)
    assert (fresh.header, fresh.unit, fresh.reorder) == (kept.header, kept.unit, kept.reorder)
    stored.write_bytes(stored.read_bytes()[:-30])
    assert FrameIndex.load(stored) is None
    assert cache.verify().entries == 1 and not stored.exists()
    assert bars(read_clip(path, sampling(5), cache=cache).pixels) == [0, 15, 30, 44, 59]
    monkeypatch.setattr("mmrl.data.frame_index.build_index", None)  # the second read makes no index
    read_clip(Clip(path, start=1.0), sampling(4), cache=cache, isolate=False)
    with pytest.raises(DataError, match="60 frames, the limit is 59"):
        frame_index(path, DecodeLimits(max_frames=59), stored)


def test_names_that_are_patterns_open_the_file_they_name(corpus, tmp_path):
    """FFmpeg would read v0.png, v1.png for a picture by the name of v%d.png, or what a colon makes an address."""
    for name in ("v%d.gif", "a:b.gif", "http:c.gif", "*.gif"):
        (tmp_path / name).write_bytes(corpus["gif.gif"].read_bytes())
        assert bars(decode(tmp_path / name, sampling(3)).pixels) == [0, 30, 59]
    (tmp_path / "v%d.mp4").write_bytes(corpus["h264.mp4"].read_bytes())
    with pytest.raises(DataError, match="takes the name for a pattern"):
        decode(tmp_path / "v%d.mp4", sampling(3, "decord"))
