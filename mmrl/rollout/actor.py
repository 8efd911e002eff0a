"""Who acts: the policy, and the environment it acts in where there is one.

Training, evaluation, `mmrl sample` and `generate` all act through an `Actor`, so held-out scores are taken with the
same tools as training. Strategies never apply here: they decide who is asked, the actor answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.policies.base import Policy
from mmrl.randomness import Key
from mmrl.record import Answer, Prompt, Request, Rollouts


@dataclass
class Actor:
    """policy  whose actions are recorded"""

    policy: Policy

    def act(self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current") -> Rollouts:
        """Rows in the order of the requests; see `Policy.rollout`. `weights` is for methods that sample with others
        than they train, as `Policy.samples_with` says."""
        options = {} if weights == "current" else {"weights": weights}  # policies may know of no others
        return self.policy.rollout(requests, key, greedy=greedy, **options)

    def written(self, prompts: Sequence[Prompt], answers: Sequence[str | Answer]) -> Rollouts:
        """`answers[i]` as if the policy had answered `prompts[i]` with it; see `Policy.written`."""
        return self.policy.written(prompts, answers)
