"""A masked diffusion language model and the schedule that fills its canvas, as two policies under one reward.

Rows have two kinds of actions, the choices of the schedule and behind them the tokens: one trajectory, two
likelihoods, one loss (`objective.kinds: {schedule: {...}, masked: {...}}`). In turns of rollout batches one of the two
has a gradient and the other none, so that its weights and moments stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.batch import KINDS
from mmrl.errors import PolicyError
from mmrl.policies import adapters
from mmrl.policies.fixed_length import asked
from mmrl.policies.masked.policy import MaskedDiffusionPolicy, ScoredMaskedModel
from mmrl.policies.masked.schedule import bin_log_probs, fill, token_log_probs
from mmrl.randomness import Key
from mmrl.record import Evaluation, Prompt, Request, Rollouts
from mmrl.stages import Need, View

MODEL, SCHEDULE = "model", "schedule"
FILE = "schedule.json"


class ScheduledModel(ScoredMaskedModel):
    """The model and the table of its schedule. `trains` says which of the two has a gradient; None: both."""

    def __init__(self, scored: ScoredMaskedModel, config: Any):
        super().__init__(scored.model, scored.mask_token, scored.likelihood, scored.temperature)
        self.plan = config.schedule
        self.schedule = nn.Parameter(
            torch.zeros(self.plan.steps(config.max_new_tokens, config.block), len(self.plan.bins))
        )
        self.trains: str | None = None

    @property
    def table(self) -> Tensor:
        """(S, K) log-probs of the bins. A step of the optimizer moves logits `rate` times as far."""
        return (self.plan.rate * self.schedule).log_softmax(-1)

    def forward(  # type: ignore[override]  # other actions, other inputs
        self, prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, when: Tensor, bins: Tensor
    ) -> dict[str, Tensor]:
        """{"log_probs": (B, S + T)} of the choices and, behind them, of the tokens."""

        def logits(canvas: Tensor) -> Tensor:
            return self.logits(prompt, prompt_mask, canvas)

        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains != SCHEDULE):
            written = token_log_probs(logits, self.plan, tokens, when, bins, self.mask_token)
        chosen = bin_log_probs(self.table, bins)
        return {"log_probs": torch.cat([chosen.detach() if self.trains == MODEL else chosen, written], 1)}


class ScheduledMaskedPolicy(MaskedDiffusionPolicy):
    """`policy.schedule`: Co-GRPO. `batches` are rollout batches trained so far."""

    inner: ScheduledModel

    def __init__(self, model: Any, tokenizer: Any, config: Any, *, seed: int = 0):
        super().__init__(model, tokenizer, config, seed=seed)
        self.module = ScheduledModel(self.module, config)
        self.batches = 0
        self._turn()

    def _turn(self) -> None:
        turns = self.config.schedule.alternate
        if turns and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise PolicyError(
                "policy.schedule.alternate: several processes wait for gradients of both policies in every step; train "
                "on one, or set policy.schedule.alternate=0"
            )
        self.inner.trains = None if not turns else (MODEL, SCHEDULE)[self.batches // turns % 2]

    def after_batch(self) -> None:
        self.batches += 1
        self._turn()

    # ---- acting

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Fill `count` canvases per request; every draw of token and schedule is keyed by prompt id and member."""
        self._only_current(weights)
        prompts, index, members = asked(requests, "masked diffusion policies fill a whole canvas")
        keys = [key.at(prompt=r.prompt.id, member=m) for r, m in members]
        steps, length = len(self.inner.schedule), self.config.max_new_tokens
        with self.acting():
            shown, shown_mask = self._padded([self.encode(r.shown or r.prompt) for r, _ in members])
            noise = [
                torch.stack([k.at(purpose=purpose).uniform(count) for k in keys]).to(self.device)
                for purpose, count in (("token", length), ("schedule", steps))
            ]
            blank = torch.full((len(members), length), self.inner.mask_token, device=self.device)
            filled = fill(
                lambda canvas: self.inner.logits(shown, shown_mask, canvas), self.inner.table, self.config.schedule,
                blank, self.config.block, *((None, None) if greedy else noise),
            )  # fmt: skip
            numbers = {
                "prompt": [index[r.prompt.id] for r, _ in members],
                "group": [r.group for r, _ in members],
                "member": [m for _, m in members],
                "seed": [0] * len(members),
                "shown": [int(r.shown is not None) for r, _ in members],
            }
            rows = {name: torch.tensor(values, device=self.device) for name, values in numbers.items()}
            rollouts = self._two_kinds(prompts, filled.tokens, rows, filled.when, filled.bins)
            rollouts.old_log_probs = self._score(self.module, rollouts)["log_probs"].float() * rollouts.mask
        return rollouts

    def _two_kinds(
        self, prompts: list[Prompt], tokens: Tensor, rows: dict[str, Tensor], when: Tensor, bins: Tensor
    ) -> Rollouts:
        """The record of these canvases: what the schedule chose stands before the tokens."""
        rollouts = self._written(prompts, tokens, rows)
        rollouts.replay |= {"when": when, "bins": bins}
        rollouts.actions = torch.cat([bins.clamp(min=0), tokens], 1)
        rollouts.mask = torch.cat([bins >= 0, rollouts.replay["written"]], 1)
        rollouts.old_log_probs = torch.zeros(rollouts.mask.shape, device=tokens.device)
        kinds = [torch.full_like(part, KINDS.index(kind)) for part, kind in ((bins, SCHEDULE), (tokens, "masked"))]
        rollouts.columns = {"kind": torch.cat(kinds, 1), "scored": rollouts.mask.float()}
        rollouts.owner = None  # of the axis that `_written` had
        rollouts.__post_init__()
        return rollouts

    # ---- scoring

    def _score(self, module: nn.Module, rollouts: Rollouts) -> dict[str, Tensor]:
        prompt, prompt_mask = self._padded([rollouts.encoded[i] for i in rollouts.prompt.tolist()])
        replay = rollouts.replay
        return module(prompt, prompt_mask, replay["tokens"], replay["when"], replay["bins"])

    def evaluate(
        self, rollouts: Rollouts, needs: Sequence[Need] = (), *, under: View | None = None, weights: str = "current"
    ) -> Evaluation:
        if weights == "reference":
            raise PolicyError("policy.schedule: a schedule keeps no reference weights; leave KL terms out")
        found = super().evaluate(rollouts, needs, under=under, weights=weights)
        return Evaluation(torch.where(rollouts.mask, found.log_probs, 0.0))

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        names = [f"{count} at {temperature:g}" for count, temperature in self.config.schedule.bins]
        words = super().action_labels(rollouts)
        return [[*(names[b] for b in row), *w] for row, w in zip(rollouts.replay["bins"].tolist(), words, strict=True)]

    # ---- weights

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        super().save_pretrained(directory, merged=merged)
        shares = self.inner.table.exp().tolist()
        told = {"bins": self.config.schedule.bins, "shares": shares}
        (Path(directory) / FILE).write_text(json.dumps(told, indent=1))

    def trainable_state(self) -> dict[str, Tensor]:
        return adapters.trainable_state(self.inner)

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        adapters.load_trainable_state(self.inner, state)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
        self._turn()
