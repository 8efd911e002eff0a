"""Media as policies see them. Decoding lives in `mmrl.data`; the core only names what it asks for."""

from __future__ import annotations

import os
import wave
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from mmrl.errors import ConfigError, DataError
from mmrl.settings import Section, read_section

if TYPE_CHECKING:  # rewards of sounds and films run where torch is not loaded
    from torch import Tensor


class VideoSampling(Section):
    """Which frames of a clip are read, and at which size. Part of the cache key, so it is immutable.

    fps          frames per second asked for; None: exactly `max_frames`, evenly spread
    backend      reader; auto is PyAV, which can be checked frame by frame
    max_frames   larger sees more, costs memory linearly in prompt tokens
    max_pixels   per frame after the resize; sides are multiples of `factor`
    total_pixels over the whole clip; lowers the size of each frame of a long clip
    factor       patch size x spatial merge of the model (28 for Qwen2.5-VL, 32 for Qwen3-VL)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fps: float | None = Field(2.0, gt=0)
    min_frames: int = Field(4, ge=1)
    max_frames: int = Field(128, ge=1)
    min_pixels: int = 16 * 28 * 28
    max_pixels: int = 64 * 32 * 32
    total_pixels: int | None = None
    factor: int = 28
    frame_multiple: int = 2
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    backend: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"

    @model_validator(mode="after")
    def _range_holds_something(self) -> VideoSampling:
        if self.max_pixels < self.min_pixels:
            raise ConfigError(
                f"sampling.max_pixels={self.max_pixels} is below min_pixels={self.min_pixels}; lower min_pixels too"
            )
        return self


@dataclass(frozen=True)
class OwnSampling:
    """What one clip asks for in place of the run's `VideoSampling`; None: as the run says."""

    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None

    def over(self, sampling: VideoSampling) -> VideoSampling:
        """`sampling` with this clip's own values; one bound of its own moves the run's other bound out of its way.

        Raises ConfigError where its own do not fit together.
        """
        own = {k: v for k, v in vars(self).items() if v is not None}
        if not own:
            return sampling
        values = sampling.model_dump() | own
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            if values[low] > values[high] and (low in own) != (high in own):
                moved, kept = (high, low) if low in own else (low, high)
                values[moved] = values[kept]
        return read_section(VideoSampling, values)


@dataclass(frozen=True)
class Clip:
    """A video, or the part of it between `start` and `end` seconds after its first frame."""

    path: Path
    start: float | None = None
    end: float | None = None
    asks: OwnSampling = OwnSampling()


@dataclass(frozen=True)
class FrameList:
    """A video given as frame images, shown at `fps` frames per second."""

    paths: tuple[Path, ...]
    fps: float = 2.0
    asks: OwnSampling = OwnSampling()


@dataclass(frozen=True)
class Reordered:
    """A video whose frames are seen in an order drawn from `seed`, at the times of the right order."""

    video: Any
    seed: int

    @property
    def path(self) -> Any:
        return getattr(self.video, "path", self.video)

    def of(self, frames: Frames) -> Frames:
        from torch import Generator, randperm

        order = randperm(len(frames.pixels), generator=Generator().manual_seed(self.seed))
        return replace(frames, pixels=frames.pixels[order], key=f"{frames.key}:order-{self.seed}")


@dataclass(frozen=True)
class Noised:
    """A video whose frames carry Gaussian noise of `std` grey levels out of 255, drawn from `seed`."""

    video: Any
    std: float
    seed: int

    @property
    def path(self) -> Any:
        return getattr(self.video, "path", self.video)

    def of(self, frames: Frames) -> Frames:
        from torch import Generator, randn, uint8

        noise = randn(frames.pixels.shape, generator=Generator().manual_seed(self.seed)) * self.std
        pixels = (frames.pixels.float() + noise).round().clamp(0, 255).to(uint8)
        return replace(frames, pixels=pixels, key=f"{frames.key}:noise-{self.std:g}-{self.seed}")


@dataclass
class Frames:
    """Decoded, sampled and resized frames of one clip.

    pixels        (F, 3, H, W) uint8, possibly memory-mapped
    indices       F frame numbers in the file, or, of a file of variable rate, slots of its time
    fps           frames of the file a second, or those slots (about 1000)
    total_frames  frames or slots of the clip (between start and end)
    size          (height, width) of the file
    backend       decoder and version that made them
    key           content address of (file, sampling)
    """

    pixels: Tensor
    indices: list[int]
    fps: float
    total_frames: int
    size: tuple[int, int]
    backend: str
    key: str

    @property
    def timestamps(self) -> list[float]:
        """Seconds of each frame after the first of the file."""
        return [i / self.fps for i in self.indices]

    @property
    def sample_fps(self) -> float:
        """Frames per second of what was sampled, not of what was asked for."""
        return len(self.indices) / max(self.total_frames, 1) * self.fps


ReadClip = Callable[[Any, VideoSampling], Frames]
"""`mmrl.data.video.read_clip` or anything like it: (Clip or path, sampling) -> Frames."""


@dataclass(frozen=True)
class Sound:
    """A generated waveform.

    samples  (channels, n) float32 in [-1, 1], a numpy array
    rate     samples a second
    """

    samples: Any
    rate: int

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / self.rate


class Film(list[Any]):
    """Frames of a generated video: a list of PIL images that knows its rate.

    fps  frames a second it is meant to be shown at
    """

    def __init__(self, frames: Iterable[Any] = (), fps: float = 16.0):
        super().__init__(frames)
        self.fps = fps


def write_video(path: Path, frames: list[Any], fps: float) -> None:
    """Encode PIL frames as H.264 in an mp4 file, which appears whole or not at all.

    Players want even sides, so an odd one is shown with its last row or column twice.
    """
    import av
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    width, height = frames[0].size
    with av.open(str(temporary), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            pixels = np.asarray(frame.convert("RGB"))
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_film(path: Path) -> Film:
    """All frames of a video file, as `write_video` left it: RGB, the loss of the codec included.

    Raises DataError where it cannot be read.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"cannot read video {path}: it has no pictures")
            stream = container.streams.video[0]
            return Film((frame.to_image() for frame in container.decode(stream)), float(stream.average_rate or 16))
    except (OSError, ValueError, av.FFmpegError) as error:
        raise DataError(f"cannot read video {path}: {error}") from None


def read_sound(path: Path) -> Sound:
    """A WAV file of 16 bits a sample. Raises DataError where it is none."""
    import numpy as np

    try:
        with wave.open(str(path), "rb") as file:
            if (width := file.getsampwidth()) != 2:
                raise DataError(f"cannot read sound {path}: expected 16 bits a sample, got {8 * width}")
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, file.getnchannels())
            return Sound((samples.T / 32767).astype(np.float32), file.getframerate())
    except (OSError, EOFError, ValueError, wave.Error) as error:
        raise DataError(f"cannot read sound {path}: {error}") from None
