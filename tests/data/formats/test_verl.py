import pytest

from mmrl.errors import DataError
from mmrl.media import Clip, OwnSampling
from tests.data.formats.shown import Shown, opened, shown


def row(content: str, truth: str, **columns) -> dict:
    nested = {"reward_model": {"style": "rule", "ground_truth": truth}, "extra_info": {"index": 0, "question": content}}
    return {"data_source": "x", "prompt": [{"role": "user", "content": content}], **nested, **columns}


def test_rows_with_images(folder):
    image = {"bytes": (folder / "images" / "red.png").read_bytes(), "path": None}
    geo = row("<image>Find x. Put it in \\boxed{}.", "3", ability="math", images=[image])
    data = opened(folder, geo, name="rows.parquet")
    assert data.format == "verl"
    assert shown(data) == [Shown("<image>Find x. Put it in \\boxed{}.", [(56, 56)], [], "3", "math")]


def test_videos_are_items_with_limits_of_their_own(folder):
    item = {"video": "videos/a.mp4", "fps": 2.0, "max_frames": 8}
    data = opened(folder, row("<video>\nWhich way?", "<answer>B</answer>", ability="video_qa", videos=[item]))
    assert shown(data) == [Shown("<video>\nWhich way?", [], ["a.mp4"], "B", "choice")]
    assert data[0].videos == [Clip(folder / "videos" / "a.mp4", asks=OwnSampling(fps=2.0, max_frames=8))]


def test_what_an_item_asks_for_is_honoured_or_refused(folder):
    item = {"video": "videos/a.mp4", "video_start": 0.5, "video_end": 1.5, "nframes": 4, "min_pixels": 784}
    [clip] = opened(folder, row("<video>Which?", "left", videos=[item]))[0].videos
    assert (clip.start, clip.end) == (0.5, 1.5)
    assert clip.asks == OwnSampling(min_frames=4, max_frames=4, min_pixels=784)
    with pytest.raises(DataError, match=r"column 'video': 'sample_fps' is not honoured"):
        opened(folder, row("<video>Which?", "left", videos=[{"video": "videos/a.mp4", "sample_fps": 1}]))
    assert (
        opened(folder, row("<video>Which?", "left", videos=[{"video": "videos/a.mp4"}])).ids()
        != opened(folder, row("<video>Which?", "left", videos=[{"video": "videos/a.mp4", "max_frames": 8}])).ids()
    )
