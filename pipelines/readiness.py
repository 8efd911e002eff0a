"""Between a data set and the step that reads it: clips through the cache, prompts made ready, damaged ones left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.pipelines.config import CacheConfig, DataConfig, RunConfig
from mmrl.policies.base import Policy
from mmrl.record import Prompt
from mmrl.rollout.nesting import Nested
from mmrl.selection.prompts import Prefetching
from mmrl.shown import tell
from mmrl.training.distributed import gather_objects

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmrl.data.cache import VideoCache
    from mmrl.rewards.panel import RewardPanel

SAFE_WITHOUT_TRUTH = 128
"""Prompts that training without a truth may have, by the study that names the collapse step."""
LOOKED_AT = 8
"""Prompts that are asked whether they ask for a format."""


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


def few_rows(config: RunConfig, prompts: Sequence[Prompt]) -> list[str]:
    """One line where a step takes more prompts than there are."""
    asked = config.training.prompts_per_step
    if not 0 < len(prompts) < asked:
        return []
    rows = "1 row" if len(prompts) == 1 else f"{len(prompts)} rows"
    return [
        f"the data set has {rows}, and a step takes {asked} prompts (training.prompts_per_step): a row comes up to "
        f"{-(-asked // len(prompts))} times in a step, each time as a group of its own"
    ]


def without_truth(config: RunConfig, prompts: Sequence[Prompt]) -> list[str]:
    """Lines where answers are paid for agreeing with each other: nothing ends the run once that has eaten the policy,
    or there are more prompts than a published study found safe."""
    paid = [
        b.name for b in Objective.of(config.objective).stages if b.spec.stage == "shaping" and "answer" in b.columns
    ]
    if not paid:
        return []
    said = []
    if "collapse_stop" not in [b.name for b in Nested.of(config.rollout).bounds]:
        said.append(
            f"shaping {paid[0]!r} pays answers for agreeing, which every such reward stops being right about at some "
            "step, and nothing ends this run there: add collapse_stop to rollout"
        )
    if len(prompts) > SAFE_WITHOUT_TRUTH:
        said.append(
            f"shaping {paid[0]!r} pays without a truth, for {len(prompts)} prompts: such training was found to stay "
            f"right on up to {SAFE_WITHOUT_TRUTH} (arXiv 2603.08660); data.limit takes the first ones"
        )
    return said


def of_rewards(config: RunConfig, panel: RewardPanel, prompts: Sequence[Prompt]) -> list[str]:
    """What is to be said of rewards before a run."""
    return [*unasked(panel, prompts), *weights_unread(config, panel)]


def unasked(panel: RewardPanel, prompts: Sequence[Prompt]) -> list[str]:
    """A line for a format that is rewarded and that none of the first prompts asks for."""
    from mmrl.rewards.format import ASKED

    first = [str(prompts[i].messages) for i in range(min(len(prompts), LOOKED_AT))]
    found = []
    for member in (m for m in panel.members if m.spec.name == "format" and first):
        wanted = ASKED.get(member.spec.options.get("kind", "think_answer"), ())
        if missing := [word for word in wanted if not any(word in text for text in first)]:
            found.append(
                f"reward {member.label!r} looks for {' and '.join(missing)}, and the first prompts ask for no such "
                "thing: say so in data.template or data.system, or take the reward out"
            )
    return found


def weights_unread(config: RunConfig, panel: RewardPanel) -> list[str]:
    """Lines for functions that take the run's rewards one by one, each as much as the others whatever its `weight`.

    Raises ConfigError where a reward of weight 0, which is there to be looked at, would train so.
    """
    weights = {member.label: member.spec.weight for member in panel.members if not member.spec.columns}
    watched = [label for label, weight in weights.items() if not weight]
    weighed = {label: w if isinstance(w, float) else 1.0 for label, w in weights.items() if w}
    said = []
    for bound in Objective.of(config.objective).stages if len(weights) > 1 else ():
        given = {**bound.spec.defaults, **bound.parameters}
        key = next((name for name in ("weights", "rewards", "objectives") if name in given and given[name] is None), "")
        if not key or "components" not in bound.columns:
            continue
        stage = bound.spec.stage
        choice = f"{{name: {bound.name}, {key}: {_told(weighed if key == 'weights' else list(weighed))}}}"
        to_name = f"objective.{stage}={choice if stage == 'advantage' else f'[{choice}]'}"
        if watched:
            raise ConfigError(
                f"reward {watched[0]!r} has weight 0, and {stage} {bound.name!r} would train on it as on the others; "
                f"name those that train, {to_name}"
            )
        if key == "weights" and any(weight != 1 for weight in weighed.values()):
            found = ", ".join(f"{label} {weight:g}" for label, weight in weighed.items())
            said.append(f"{stage} {bound.name!r} does not read the weights of rewards ({found}): for these {to_name}")
    return said


def _told(named: Mapping[str, float] | list[str]) -> str:
    if isinstance(named, list):
        return f"[{', '.join(named)}]"
    return f"{{{', '.join(f'{label}: {weight:g}' for label, weight in named.items())}}}"


def tell_all(lines: Iterable[str]) -> None:
    """On the first rank."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            tell(line)
