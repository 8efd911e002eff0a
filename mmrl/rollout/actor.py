"""Who acts: the policy, and the environment it acts in where there is one.

Training, evaluation, `mmrl sample` and `generate` all act through an `Actor`, so held-out scores are taken with the
same tools as training. Strategies never apply here: they decide who is asked, the actor answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmrl.columns import COLUMNS
from mmrl.errors import PolicyError
from mmrl.policies.base import Policy
from mmrl.randomness import Key
from mmrl.record import LOST, Answer, Batch, Prompt, Request, Rollouts, Scores, Stored
from mmrl.rollout.environments.base import ROWS, Surroundings
from mmrl.rollout.environments.states import turn_column


@dataclass
class Actor:
    """policy       whose actions are recorded
    environment  that answers between turns; None: a response is one run
    """

    policy: Policy
    environment: Surroundings | None = None

    def __post_init__(self) -> None:
        if self.environment is not None:
            self.policy.check_turns()

    def act(self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current") -> Rollouts:
        """Rows in the order of the requests; see `Policy.rollout` and `Policy.converse`. `weights` is for methods that
        sample with others than they train, as `Policy.samples_with` says."""
        options = {} if weights == "current" else {"weights": weights}  # policies may know of no others
        if self.environment is None:
            return self.policy.rollout(requests, key, greedy=greedy, **options)
        return self.policy.converse(requests, key, self.environment, greedy=greedy, **options)

    def by_teacher(self, requests: Sequence[Request], key: Key) -> Rollouts:
        """What the teacher writes for each member of the requests; see `Policy.by_teacher`."""
        return self.policy.by_teacher(requests, key)

    def act_ahead(self, requests: Sequence[Request], key: Key) -> None:
        """Let the policy's engine begin what `act(requests, key)` will ask for."""
        self.policy.write_ahead(requests, key, self.environment)

    def written(self, prompts: Sequence[Prompt], answers: Sequence[str | Answer]) -> Rollouts:
        """`answers[i]` as if the policy had answered `prompts[i]` with it, in one run; see `Policy.written`."""
        rows = self.policy.written(prompts, answers)
        if self.environment is not None:
            constants = ROWS | dict(self.environment.columns)
            rows.columns |= {name: torch.full_like(rows.old_log_probs[:, 0], fill) for name, fill in constants.items()}
            rows.columns |= {"turn": torch.zeros_like(rows.actions), "segment": rows.mask.long() - 1}
            rows.columns |= {"state": rows.mask.long() - 1}  # one run, in the state every conversation begins in
            nothing, turn = [()] * len(rows), rows.columns["turn"]
            for name in self.environment.turn_columns:
                rows.columns[name] = turn_column(COLUMNS[name], nothing, rows.mask, turn)
        return rows

    def stored(self, prompts: Sequence[Prompt], outputs: Sequence[Stored], key: Key) -> Rollouts:
        """`outputs[i]` as if the policy had made it of `prompts[i]`; see `Policy.stored`."""
        if self.environment is not None:
            raise PolicyError("stored outputs know of no environment: leave `environment` or the stored outputs out")
        return self.policy.stored(prompts, outputs, key)

    def metrics(self, batch: Batch) -> dict[str, float]:
        """How a batch of all ranks used the environment, and what this process has seen go wrong by cause."""
        if self.environment is None:
            return {}
        calls = batch["calls"].double()
        counted = {f"environment/{cause}": float(n) for cause, n in sorted(dict(self.environment.counts).items())}
        return {
            "environment/call_rate": (calls > 0).double().mean().item(),
            "environment/calls_per_row": calls.mean().item(),
            "environment/bad_calls_per_row": batch["bad_calls"].double().mean().item(),
            "environment/observed_columns": batch["observed"].double().mean().item(),
            **{f"environment/{name}": batch[name].double().mean().item() for name in self.environment.columns},
            **counted,
        }


def score_rows(rollouts: Rollouts, score: Callable[[list[Any], list[Prompt]], Scores]) -> Scores:
    """Write into `rollouts` what its outputs are worth, and return it, an entry a row.

    Rows whose environment failed are not shown to the rewards: they are unscored, for that cause. Nor are rows that
    bring a reward of their own, which they keep.
    """
    brought = torch.full(rollouts.group.shape, float("nan")) if rollouts.reward is None else rollouts.reward.cpu()
    lost = Counter(f"environment: {why.removeprefix(LOST)}" for why in rollouts.finish if why.startswith(LOST))
    unknown = brought.isnan().tolist()
    kept = [row for row, why in enumerate(rollouts.finish) if unknown[row] and not why.startswith(LOST)]
    prompts = [rollouts.prompts[i] for i in rollouts.prompt.tolist()]
    scores = score([rollouts.outputs[row] for row in kept], [prompts[row] for row in kept])
    if len(kept) < len(rollouts):
        scores = _spread(scores, kept, len(rollouts), lost)
    if not all(unknown):
        scores = _with_own(scores, brought, rollouts.components)
    device = rollouts.mask.device
    rollouts.components = {name: values.to(device) for name, values in scores.components.items()}
    rollouts.reward, rollouts.success = scores.reward.to(device), scores.success.to(device)
    return scores


def _with_own(scores: Scores, brought: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> Scores:
    """Scores in which rows that bring a reward (B,), NaN elsewhere, keep it, and its parts by the rewards' names."""
    own = ~brought.isnan()
    components = {n: torch.where(own & (n in parts), parts.get(n, brought).cpu(), v.cpu()) for n, v in
                  scores.components.items()}  # fmt: skip
    return replace(scores, components=components, reward=torch.where(own, brought, scores.reward.cpu()))


def _spread(scores: Scores, kept: Sequence[int], count: int, lost: Counter) -> Scores:
    """Scores of the rows `kept` among `count`: NaN and None for the others."""
    rows = torch.tensor(kept, dtype=torch.long)

    def tensor(values: torch.Tensor) -> torch.Tensor:
        return values.new_full((count,), float("nan")).index_copy(0, rows, values)

    def listed(values: Sequence[Any]) -> list[Any]:
        held = dict(zip(kept, values, strict=True))
        return [held.get(row) for row in range(count)]

    return replace(
        scores,
        components={name: tensor(values) for name, values in scores.components.items()},
        reward=tensor(scores.reward),
        success=tensor(scores.success),
        causes=dict(Counter(scores.causes) + lost),
        columns={name: listed(values) for name, values in scores.columns.items()},
    )
