"""What a row asks of its own clip holds in place of what the run says."""

import pytest

from mmrl.data.cache import VideoCache
from mmrl.data.video import read_clip
from mmrl.errors import ConfigError
from mmrl.media import Clip, OwnSampling, VideoSampling


def test_a_clip_is_read_as_its_row_asks(clip, sampling, tmp_path):
    """8 of 60 frames under the run's sampling; its own limits hold in place of those, and in the cache's key."""
    cache = VideoCache(tmp_path / "cache")
    own = Clip(clip, asks=OwnSampling(fps=1.0, max_frames=2, max_pixels=56 * 56))
    for _ in range(2):
        frames = read_clip(own, sampling, cache=cache)
        assert frames.pixels.shape == (2, 3, 28, 56)
        assert len(read_clip(Clip(clip), sampling, cache=cache).indices) == 8
    assert cache.counts["hits"] == 2


def test_one_bound_of_a_clip_moves_the_other_of_the_run():
    run = VideoSampling(min_frames=4, max_frames=8, min_pixels=12544, max_pixels=65536)
    assert OwnSampling(max_frames=2, max_pixels=784).over(run) == run.model_copy(
        update={"min_frames": 2, "max_frames": 2, "min_pixels": 784, "max_pixels": 784}
    )
    assert OwnSampling(min_frames=16).over(run).max_frames == 16
    assert OwnSampling().over(run) is run
    with pytest.raises(ConfigError, match="is below min_pixels"):
        OwnSampling(min_pixels=784, max_pixels=100).over(run)
