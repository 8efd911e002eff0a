"""`limited`: a token's log-prob among those that it could be when it was drawn, as engine `nlpo` keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmrl.policies.language.likelihoods.tokens import Tokens
from mmrl.policies.language.log_probs import Chunk
from mmrl.record import Rollouts
from mmrl.stages import Need

ALLOWED = "allowed"
"""Of a rollout's replay: (B, T, K) int32 ids plus 1 of the tokens that could be drawn, 0 for none."""


def limited(logits: Tensor, allowed: Tensor) -> Tensor:
    """(b, V) with every token but the allowed ones at the lowest finite number, as suppressed ids are.

    allowed  (b, K) ids plus 1, 0 for none; a row without any is not limited
    """
    places = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    inside = places.scatter(1, allowed.long(), True)[:, 1:]
    inside |= ~(allowed > 0).any(1, keepdim=True)
    return logits.masked_fill(~inside, torch.finfo(logits.dtype).min)


class Limited(Tokens):
    """log p(token | what stands before it, one of the allowed ones): renormalised over them, probes alike.

    Which tokens were allowed belongs to the rollout and carries no gradient. Source: allenai/RL4LMs,
    policy/causal_policy.py (`forward_policy`: masks of the buffer are applied before log-probs and entropy).
    """

    engines = ("nlpo",)

    def work(self, rollouts: Rollouts) -> Tensor:
        """(B, T, 1 + K) int32: the token, and the ids plus 1 of those allowed."""
        actions = rollouts.actions.int()[..., None]
        kept = rollouts.replay.get(ALLOWED)
        return actions if kept is None else torch.cat([actions, kept.to(actions)], dim=-1)

    def score(self, work: Tensor, predict: Chunk, asked: Sequence[Need]) -> dict[str, Tensor]:
        token, allowed = work[:, 0].long(), work[:, 1:]
        logits = limited(predict.logits, allowed) if allowed.shape[1] else predict.logits
        return super().score(token, replace(predict, logits=logits, actions=token), asked)
