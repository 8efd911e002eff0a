"""Between a data set and the step that reads it: clips through the cache, prompts made ready, damaged ones left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from mmrl.pipelines.config import CacheConfig, DataConfig
from mmrl.policies.base import Policy
from mmrl.record import Prompt
from mmrl.selection.prompts import Prefetching
from mmrl.training.distributed import gather_objects

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmrl.data.cache import VideoCache


def clip_reader(cache: CacheConfig) -> Callable:
    """`read_clip` bound to the cache of this run."""
    from mmrl.data.cache import VideoCache
    from mmrl.data.video import read_clip

    if not cache.enabled:
        return read_clip
    return partial(read_clip, cache=VideoCache(cache.root, budget_bytes=int(cache.budget_gb * 2**30)))


def cache_of(policy: Policy) -> VideoCache | None:
    """The cache that the policy reads clips through, if it reads clips and has one."""
    reader = getattr(policy, "read_clip", None)
    return reader.keywords.get("cache") if isinstance(reader, partial) else None


def counters(policy: Policy, prompts: Sequence[Prompt], accelerator: Accelerator) -> dict[str, float]:
    """Hits, misses and damage of the frame cache since this process started, and how many rows all ranks left out;
    nothing of what is not there. Every rank must call it."""
    from mmrl.data.cache import as_metrics
    from mmrl.data.skipping import Skipping

    cache = cache_of(policy)
    found = {} if cache is None else as_metrics(cache)
    if isinstance(prompts, Skipping):
        rows = {row for part in gather_objects(sorted(prompts.left_out), accelerator) for row in part}
        found["data/left_out"] = float(len(rows))
    return found


def leaving_out(prompts: Sequence[Prompt], data: DataConfig) -> Sequence[Prompt]:
    """`prompts`, without those that cannot be read where the configuration says so. A sequence of the caller's own
    class is left as it is."""
    from mmrl.data.prompts import Prompts
    from mmrl.data.skipping import Skipping

    asked = data.on_error == "skip" and isinstance(prompts, list | tuple | Prompts)
    return Skipping(prompts, data.skip_ceiling) if asked and not isinstance(prompts, Skipping) else prompts


def made_ready(prompts: Sequence[Prompt], policy: Policy, workers: int, stack: ExitStack) -> Sequence[Prompt]:
    """`prompts`, those announced opened and their clips decoded ahead until `stack` closes.

    A sequence of the caller's own class is left as it is: what it gives may depend on when it is asked. It may have a
    `prefetch` of its own, or come as an `mmrl.data.ahead.Ahead`.
    """
    from mmrl.data.ahead import Ahead
    from mmrl.data.prompts import Prompts
    from mmrl.data.skipping import Skipping
    from mmrl.policies.language.video import VideoPolicy

    read = (lambda clip: policy.read_clip(clip, policy.sampling)) if isinstance(policy, VideoPolicy) else None
    if isinstance(prompts, Skipping):
        return prompts.over(made_ready(prompts.prompts, policy, workers, stack), read)
    if not workers or not isinstance(prompts, list | tuple | Prompts) or isinstance(prompts, Prefetching):
        return prompts
    kept = cache_of(policy) is not None  # without a cache there is no place to leave frames
    return stack.enter_context(Ahead(prompts, workers, read if kept else None))
