"""Vision-language models on still images: one or several per prompt, of any sizes."""

from __future__ import annotations

from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.policy import LanguagePolicy
from mmrl.policies.views import BESIDE, PIXEL_VIEWS, REMOVE_MEDIA, VIDEO_VIEWS


class VisionPolicy(LanguagePolicy):
    """Answers about images. `from_config(config, seed=0)`, or `VisionPolicy(model, processor, config)`."""

    modality = "vlm"
    reads = frozenset({"image"})
    config_type = LanguagePolicyConfig
    views = frozenset(PIXEL_VIEWS) - VIDEO_VIEWS | {REMOVE_MEDIA, BESIDE}
