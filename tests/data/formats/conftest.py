from pathlib import Path

import pytest
from PIL import Image

SIZES = {"red": (56, 56), "blue": (64, 32)}


@pytest.fixture
def folder(tmp_path: Path, clip: Path) -> Path:
    """`images/red.png`, `images/blue.png`, `videos/a.mp4`, `videos/b.mp4`, `frames/0.png` to `3.png`."""
    for name in ("images", "videos", "frames"):
        (tmp_path / name).mkdir()
    for name, size in SIZES.items():
        Image.new("RGB", size, name).save(tmp_path / "images" / f"{name}.png")
    for name in "ab":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(clip.read_bytes())
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / "frames" / f"{number}.png")
    return tmp_path
