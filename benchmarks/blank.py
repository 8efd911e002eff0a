"""Environments that follow every call and show nothing: the control that what is seen is what helps."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from mmrl.data.worlds.motion import FPS, SIZE
from mmrl.media import Clip, write_video
from mmrl.rollout.environments.base import Observation
from mmrl.rollout.environments.frames import FramesBetween
from mmrl.rollout.environments.zoom import Zoom


class BlankCrops(Zoom):
    """A black picture in place of every crop."""

    def _shown(self, crop: Any) -> Any:
        from PIL import Image

        return super()._shown(Image.new("RGB", crop.size))


class BlankFrames(FramesBetween):
    """A black clip in place of the part asked for."""

    def step(self, state: Any, output: str) -> Any:
        reply = super().step(state, output)
        if not isinstance(reply, Observation) or reply.bad:
            return reply
        return Observation.of("", videos=[Clip(black_clip(), reply.videos[0].start, reply.videos[0].end)])


def black_clip(seconds: int = 6) -> Path:
    """A clip of nothing, written once."""
    from PIL import Image

    path = Path(tempfile.gettempdir()) / f"mmrl-black-{os.getuid()}" / f"{seconds}.mp4"
    if not path.exists():
        write_video(path, [Image.new("RGB", (SIZE, SIZE))] * (seconds * FPS), FPS)
    return path
