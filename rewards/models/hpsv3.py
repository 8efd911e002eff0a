"""HPSv3 (Ma et al. 2025) by its package, a Qwen2-VL that downloads its weights on first use."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmrl.rewards.models.hpsv2 import OWN
from mmrl.rewards.packages import device_of, loaded, needed, pictures_only
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text


@lru_cache(maxsize=1)
def _load(device: str) -> Any:
    package = needed("hpsv3", "hpsv3", "hpsv3", OWN)
    return loaded(lambda: package.HPSv3RewardInferencer(device=device), "hpsv3", "its weights")


@reward("hpsv3", isolated=False)
def hpsv3(prompts, completions, caption=None, *, device: str | None = None, batch_size: int = 8) -> list[float]:
    """Human Preference Score v3: of each picture for its column `caption`, or its prompt; unbounded."""
    pictures_only(completions, "hpsv3")
    model = _load(device_of(device))
    texts = list(caption or [asked_text(prompt) for prompt in prompts])
    scores: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(len(completions))]
        for path, image in zip(paths, completions, strict=True):
            image.convert("RGB").save(path)
        for start in range(0, len(paths), batch_size):
            part = slice(start, start + batch_size)
            scores += [float(each[0]) for each in model.reward(prompts=texts[part], image_paths=paths[part])]
    return scores
