from pathlib import Path

import pytest

from mmrl.media import VideoSampling
from tests.data.clips import write_clip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test reads or writes is in the user's cache."""
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "user-cache"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of 96x48 at 30 fps, H.264."""
    return write_clip(tmp_path_factory.mktemp("clips") / "h264.mp4")


@pytest.fixture
def sampling() -> VideoSampling:
    """8 frames of a 2 s clip, sides multiples of 28."""
    return VideoSampling(fps=4, max_frames=16, min_pixels=28 * 28)
