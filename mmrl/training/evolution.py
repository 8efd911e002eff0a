"""Training without a gradient: candidates for a few thousand numbers, each judged by what the policy then answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from mmrl.errors import ConfigError, MMRLError
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.rollout.actor import score_rows
from mmrl.selection.prompts import Shuffled
from mmrl.training.trainer import Trainer
from mmrl.weights.essa import SingularValues
from mmrl.weights.evolution import Search


class EvolutionTrainer(Trainer):
    """ESSA: a step is a generation. Every candidate answers the same prompts with the same draws.

    population  candidates of a generation; a step costs population x prompts_per_step x group_size rollouts
    sigma       the first step width, as a share of the mean singular value: .05 to .1
    share       of each factor's singular values that is searched, the largest first

    The policy needs an adapter that was trained before (`policy.adapter`). What the objective says plays no part: of a
    candidate its mean reward counts, by rank. One process.
    """

    wants = "policy.adapter=FOLDER, an adapter that was trained before: the search keeps its directions"

    def __init__(self, *args: Any, population: int = 24, sigma: float = 0.05, share: float = 1.0, **settings: Any):
        super().__init__(*args, **settings)
        if not isinstance(self.sampler, Shuffled):
            raise ConfigError("learner essa tells no sampler what came of its prompts; expected prompts=shuffled")
        if self.accelerator.num_processes > 1:
            raise ConfigError("learner essa runs in one process; let an engine with several GPUs write its responses")
        if self.strategies.bounds:
            raise ConfigError("learner essa asks for independent answers: leave `rollout` empty")
        self.values = SingularValues(self.policy.inner, share)
        start = self.values.vector()
        self.search = Search(start, sigma * float(start.mean()), population)

    @torch.no_grad()
    def train_step(self) -> dict[str, Any]:
        """One generation, judged and followed; the policy then is the mean of the search."""
        key = Key(self.config.seed, self.step)
        indices = self.sampler.select(self.config.prompts_per_step, len(self.collector.prompts), key)
        self.causes: Counter = Counter()
        candidates = self.search.ask(key.at(purpose="candidates").generator())
        try:
            rewards = torch.stack([self._worth(candidate, indices, key) for candidate in candidates])
            self.search.tell(candidates, rewards)
        finally:
            self.values.put(self.search.mean)
        self.updates += 1
        self.policy.after_update()
        self.policy.after_batch()
        count = len(candidates) * len(indices) * self.config.group_size
        return {
            "reward/unscored_fraction": sum(self.causes.values()) / count, "unscored": dict(self.causes),
            "reward/mean": float(rewards.mean()), "reward/best": float(rewards.max()),
            "reward/std": float(rewards.std(correction=0)), "essa/sigma": self.search.sigma, "updates": self.updates,
            "rollouts": count, **self.values.described(),
            **self.counters(), **self.policy.counted(),
        }  # fmt: skip

    def _worth(self, candidate: torch.Tensor, indices: list[int], key: Key) -> torch.Tensor:
        """() mean reward of a candidate over what could be scored."""
        self.values.put(candidate)
        self.policy.after_update()  # an engine with weights of its own takes these
        requests = [Request(self.collector.prompts[i], self.config.group_size, group=g) for g, i in enumerate(indices)]
        with self.clock("rollout"):
            rollouts = self.actor.act(requests, key)
        with self.clock("reward"):
            scores = score_rows(rollouts, self.score)
        reward, scored = scores.reward, ~scores.reward.isnan()
        self.causes.update(scores.causes)
        if not scored.any():
            raise MMRLError(f"step {self.step + 1}: no answer of a candidate could be scored, so none can be compared")
        return reward[scored].double().mean()

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"search": self.search.state_dict()}

    def _restored(self, state: dict[str, Any]) -> None:
        self.search = Search.of_state(state["search"])
        self.values.put(self.search.mean)
