"""Video LLMs: the same families on clips. Frames come decoded, sampled and resized from an injected reader.

The reader decides the frames once; the processor is told not to sample, and not to resize where the family takes any
size, so every later pass sees the same frames. (A family whose tower takes one size has its processor make it.) Time
reaches the model the family's way: Qwen2.5-VL through seconds per grid step in its positions, Qwen3-VL through a
`<t seconds>` text before each pair of frames.
"""

from __future__ import annotations

from typing import Any

from mmrl.errors import ConfigError, PolicyError
from mmrl.media import Frames, Noised, ReadClip, Reordered, VideoSampling
from mmrl.policies.language.config import LanguagePolicyConfig, load_processor
from mmrl.policies.language.families import family_of
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.policy import LanguagePolicy
from mmrl.policies.views import BESIDE, PIXEL_VIEWS, REMOVE_MEDIA
from mmrl.record import Prompt

ANY_SIZE = 2
"""Sides of frames that the processor resizes itself: even, as decoders give them."""


class VideoPolicyConfig(LanguagePolicyConfig):
    """A language policy that watches clips.

    sampling  which frames, at which size; `factor` and `frame_multiple` are set from the model
    """

    sampling: VideoSampling = VideoSampling.model_validate({})


class VideoPolicy(LanguagePolicy):
    """Answers about clips, and about images between them. Needs `read_clip`."""

    modality = "video"
    reads = frozenset({"image", "video"})
    config_type = VideoPolicyConfig
    views = frozenset(PIXEL_VIEWS) | {REMOVE_MEDIA, BESIDE}
    read_clip: ReadClip

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: VideoPolicyConfig,
        *,
        seed: int = 0,
        read_clip: ReadClip | None = None,
    ):
        if read_clip is None:
            raise ConfigError("the video policy needs `read_clip`, such as mmrl.data.video.read_clip")
        family = family_of(model.config, processor)
        if not family.reads_video:
            raise ConfigError(
                f"model type {family.model_type!r} reads no video: its processor has no video part; train it with the "
                "vlm policy, or give frames as images"
            )
        super().__init__(model, processor, config, seed=seed, read_clip=read_clip)
        self.sampling = _sampling(config, self.family)

    @staticmethod
    def sampling_of(config: VideoPolicyConfig) -> VideoSampling:
        """How the policy of `config` would read clips, from the checkpoint's configuration alone."""
        from transformers import AutoConfig

        trusted = {"trust_remote_code": config.trust_remote_code}
        return _sampling(config, family_of(AutoConfig.from_pretrained(config.model, **trusted), load_processor(config)))

    def _frames(self, prompt: Prompt) -> list[Frames]:
        clips, unit, step = [], self.sampling.factor, self.family.temporal_patch
        for video in prompt.videos:
            frames = self._read(video)
            count, _, height, width = frames.pixels.shape
            if count % step or height % unit or width % unit:
                raise PolicyError(
                    f"prompt {prompt.id!r}: {count} frames of {height}x{width} pixels; {self.family.model_type} "
                    f"needs a multiple of {step} frames and sides that are multiples of {unit}. The reader must "
                    "follow VideoSampling.factor and frame_multiple"
                )
            clips.append(frames)
        return clips

    def _read(self, video: Any) -> Frames:
        if isinstance(video, Reordered | Noised):
            return video.of(self._read(video.video))
        return self.read_clip(video, self.sampling)


def _sampling(config: VideoPolicyConfig, family: Family) -> VideoSampling:
    wanted = {"factor": family.factor or ANY_SIZE, "frame_multiple": family.temporal_patch}
    return config.sampling.model_copy(update=wanted)
