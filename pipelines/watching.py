"""The watch over the run of who draws, composed of what the configuration names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mmrl import plugins
from mmrl.errors import ConfigError, MMRLError
from mmrl.policies.base import Policy
from mmrl.record import Prompt
from mmrl.rollout.actor import Actor
from mmrl.shown import tell
from mmrl.training.evaluation import Score
from mmrl.training.watch import HELD_OUT, TRAINED, Watch, WatchConfig

if TYPE_CHECKING:
    from mmrl.rewards.panel import RewardPanel

T = TypeVar("T")

PROBES = "probes.safetensors"
PROBED = 8
"""Prompts on which drift is measured."""


def placed(key: str, make: Callable[[], T]) -> T:
    """What `make` makes of a key of the configuration, which its errors then name."""
    try:
        return make()
    except MMRLError as error:
        raise ConfigError(f"{key}: {error}") from None


def watch_of(
    settings: WatchConfig, policy: Policy, score: Score, prompts: Sequence[Prompt], held_out: RewardPanel | None, *,
    folder: Path | None,
) -> Watch:  # fmt: skip
    """score  what trains; held_out: the rewards that do not; folder: where start and measurements are kept"""
    from mmrl.policies.generation.drift import Probes

    scores: dict[str, Score] = {TRAINED: score}
    if held_out is not None:
        held_out.check([prompts[i] for i in range(min(settings.prompts, len(prompts)))])
        scores[HELD_OUT] = held_out.score
    embed = plugins.load(settings.embedding, "watch.embedding") if settings.embedding else None
    path = None if folder is None else folder / PROBES
    first = os.environ.get("RANK", "0") == "0"
    watch = Watch(Actor(policy), prompts, scores, settings, embed=embed, folder=folder, speaks=first)
    painter, probed = policy.painter, watch.prompts[:PROBED]
    if painter is not policy:  # what somebody else looked at is not the painter's
        probed = [Prompt(p.id, [{"role": "user", "content": p.text}]) for p in probed]
    probes = Probes(painter, probed, path)
    begun: list[bool] = []

    def drift() -> float:
        if not begun:
            if first and watch.rows and path is not None and not path.exists():
                tell(f"watch: {path} is gone, which held where the model began; drift is from here, not the start")
            probes.begin(write=first)
            begun.append(True)
        return probes.drift()

    if any(p.requires_grad for p in painter.module.parameters()):
        watch.drift = drift
    return watch
