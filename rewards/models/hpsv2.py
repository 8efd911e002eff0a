"""HPSv2 (Wu et al. 2023) by its package, which downloads its weights on first use."""

from __future__ import annotations

from mmrl.rewards.packages import loaded, needed, pictures_only
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text

OWN = "its pins do not go with ours: give the reward an interpreter of its own, python: /path/to/venv/bin/python"


@reward("hpsv2", isolated=False)
def hpsv2(prompts, completions, caption=None, *, version: str = "v2.1") -> list[float]:
    """Human Preference Score v2: of each picture for its column `caption`, or its prompt; about .2 to .35."""
    pictures_only(completions, "hpsv2")
    package = needed("hpsv2", "hpsv2", "hpsv2x", OWN)
    texts = caption or [asked_text(prompt) for prompt in prompts]
    score = loaded(lambda: package.score, "hpsv2", version)
    return [float(score(i.convert("RGB"), t, hps_version=version)[0]) for i, t in zip(completions, texts, strict=True)]
