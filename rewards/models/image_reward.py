"""ImageReward (Xu et al. 2023) by its package, which downloads its weights on first use."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mmrl.rewards.models.hpsv2 import OWN
from mmrl.rewards.packages import device_of, loaded, needed, pictures_only
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text


@lru_cache(maxsize=1)
def _load(model: str, device: str) -> Any:
    package = needed("ImageReward", "image_reward", "image-reward", OWN)
    return loaded(lambda: package.load(model, device=device), "image_reward", model)


@reward("image_reward", isolated=False)
def image_reward(
    prompts, completions, caption=None, *, model: str = "ImageReward-v1.0", device: str | None = None
) -> list[float]:
    """ImageReward: what people would say of each picture for its column `caption`, or its prompt; about -2 to 2."""
    pictures_only(completions, "image_reward")
    net = _load(model, device_of(device))
    texts = caption or [asked_text(prompt) for prompt in prompts]
    return [float(net.score(text, [image.convert("RGB")])) for image, text in zip(completions, texts, strict=True)]
