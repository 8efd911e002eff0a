"""`mmrl cache`: fill, verify and prune the cache of decoded video."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from mmrl.data.cache import BuildReport, VideoCache
from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import open_prompts, reward_panel
from mmrl.policies.language.video import VideoPolicy

LARGEST_GB = 1e9


def build_cache(config: str, overrides: Sequence[str], workers: int | None = None) -> BuildReport:
    """Decode the clips of train and held-out data as the policy will read them."""
    settings = read_config(config, overrides, "video")
    sampling = VideoPolicy.sampling_of(settings.policy_settings())
    cache = VideoCache(settings.cache.root, budget_bytes=int(settings.cache.budget_gb * 2**30))
    clips = []
    data = settings.data
    with reward_panel(settings) if settings.rewards else nullcontext() as panel:
        parts = [(data.train, data.limit, False), (data.eval, data.eval_limit, True)]
        opened = [open_prompts(s, data, n, panel=panel, held_out=held_out) for s, n, held_out in parts if s]
    for prompts in opened:
        clips += [clip for i in range(len(prompts)) for clip in prompts[i].videos]
    if not clips:
        raise ConfigError(f"{config}: its data has no videos")
    return cache.build(clips, sampling, workers=workers or settings.cache.workers)


def verify_cache(root: Path | None) -> str:
    return str(_existing(root).verify())


def prune_cache(budget_gb: float, root: Path | None) -> str:
    if not 0 <= budget_gb < LARGEST_GB:
        raise ConfigError(f"{budget_gb}: expected the gigabytes to keep, from 0 on")
    return str(_existing(root).prune(int(budget_gb * 2**30)))


def _existing(root: Path | None) -> VideoCache:
    if root is not None and not root.is_dir():
        raise ConfigError(f"{root}: no such cache folder")
    return VideoCache(root)
