"""What the unconditional passes of a rollout found, for the update that follows it.

    v = u + s (c - u)      c under the prompt; u without it, and without gradient (`policy.guidance: detached`)

An update scores the states that its rollout went through, and under the weights that drew them u is what the rollout
found there: kept with the states, the first optimizer step of a rollout batch asks for c alone. Then the weights have
moved, and those steps that follow ask for both, as does whatever trains rows of other weights. The self-check asks for
both as well: that the two agree is what it is for.

As much memory as the states, float32, where they lie (`policy.latents_on`); `mmrl plan` counts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.likelihoods import likelihood_class
from mmrl.policies.sharding import is_sharded
from mmrl.record import Rollouts

COLUMN = "without"
Row = tuple[str, bytes]
"""A prompt's id, and the log-probs of what was drawn, bit for bit: no two rows share them by accident."""


def asked(settings: FlowPolicyConfig) -> bool:
    """Whether a run of these settings reads unconditional velocities that its rollouts can have found."""
    sampled_by_others = any(a is not None and a.samples is not None for a in (settings.anchor, settings.behaviour))
    steps_may_reuse_blocks = settings.reuse is not None and settings.reuse.drawn
    return (
        settings.reuse_unconditional
        and settings.guidance == "detached"
        and settings.guidance_scale > 1
        and likelihood_class(settings.likelihood).reads_unconditional
        and not sampled_by_others
        and not steps_may_reuse_blocks
    )


class Unconditional:
    """Which rows were drawn by the weights as they are now.

    module  whose weights draw and train
    """

    def __init__(self, settings: FlowPolicyConfig, module: nn.Module):
        self._asked, self._module = asked(settings), module
        self._rows: set[Row] = set()
        self._weights: list[tuple[int, int]] = []

    def kept_of(self, generator: Generator) -> bool:
        """Whether rollouts keep them. A pipeline that is replayed as a whole tells no branches apart; dropout draws
        other noise in an update; ranks that hold shards must make equally many calls."""
        noise = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in self._module.modules())
        return self._asked and not generator.guides_itself and not noise and not is_sharded(self._module)

    def drawn(self, rollouts: Rollouts, begun: Iterable[Rollouts] = ()) -> None:
        """These rows were drawn now; `begun`: rows that some of them go on from, and take their first steps from."""
        if COLUMN not in rollouts.replay:
            return
        if any(not self._fresh(row) for row in begun):
            return
        self._forget_if_moved()
        self._rows |= set(_named(rollouts))

    def forget(self) -> None:
        """The weights have moved."""
        self._rows.clear()

    def usable(self, rollouts: Rollouts, weights: str = "current") -> Rollouts:
        """The rollouts, with what was found without a prompt only where these weights would find the same of all."""
        if COLUMN not in rollouts.replay or (weights in ("current", "old") and self._fresh(rollouts)):
            return rollouts
        return self.left_out(rollouts)

    @staticmethod
    def left_out(rollouts: Rollouts) -> Rollouts:
        return replace(rollouts, replay={n: v for n, v in rollouts.replay.items() if n != COLUMN})

    def _fresh(self, rollouts: Rollouts) -> bool:
        self._forget_if_moved()
        return set(_named(rollouts)) <= self._rows and not bool(rollouts.replay["shown"].any())

    def _forget_if_moved(self) -> None:
        """Writing into a weight raises its version: by an optimizer, a checkpoint that is loaded, or anyone else."""
        weights = [(id(p), p._version) for p in self._module.parameters()]
        if weights != self._weights:
            self._rows, self._weights = set(), weights


def _named(rollouts: Rollouts) -> Iterable[Row]:
    ids = [rollouts.prompts[place].id for place in rollouts.prompt.tolist()]
    drew: Any = rollouts.old_log_probs.detach().to("cpu", torch.float32).numpy()
    return zip(ids, (row.tobytes() for row in drew), strict=True)
