"""`soft_tokens`: an action may be a mixture of tokens, with the density of the noise that it was mixed by.

Engine `soft` keeps with a rollout what a mixture was made of. Scored again, the same mixtures are put in where the
model embeds its input, and the log-probs of the same few tokens give the density. Other actions are tokens as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.objective.soft_tokens import soft_token_log_prob
from mmrl.policies.language.likelihoods.tokens import Tokens
from mmrl.policies.language.log_probs import Chunk
from mmrl.policies.language.scoring import Plain, Rows
from mmrl.record import Rollouts
from mmrl.stages import Need

SOFT, IDS, GUMBELS, WEIGHTS = "soft", "soft_ids", "gumbels", "soft_weights"
"""Of a rollout's replay: (B, T) 1 on mixtures; (B, T, K) their tokens, perturbed log-probs, and shares."""


@contextmanager
def mixed(embedding: nn.Module, ids: Tensor, weights: Tensor, at: Tensor) -> Iterator[None]:
    """While it is open, `embedding` gives for input `at (B, L)` the mixture of `ids` by `weights`, both (B, L, K).

    Inputs of another shape, such as single tokens that a model looks up on the way, are embedded as ever.
    """

    def hook(module: Any, given: tuple[Any, ...], embedded: Tensor) -> Tensor:
        if embedded.shape[:2] != at.shape:
            return embedded
        each = type(module).forward(module, ids[at])  # whatever scale the family gives its embeddings
        return embedded.masked_scatter(at[..., None], (weights[at][..., None].to(each) * each).sum(1))

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class Mixed:
    """Plain rows whose mixtures are put in where they are embedded. soft (B, T) bool; ids, weights (B, T, K)"""

    rows: Plain
    soft: Tensor
    ids: Tensor
    weights: Tensor

    @property
    def has_media(self) -> bool:
        return self.rows.has_media

    def states(self, module: Any, mask: Tensor) -> Tensor:
        width, steps = self.rows.inputs["input_ids"].shape[1], self.rows.steps

        def behind_prompt(values: Tensor) -> Tensor:
            values = values[:, :steps].to(mask.device)
            return torch.cat([values.new_zeros(len(values), width - steps, *values.shape[2:]), values], dim=1)

        at, ids, weights = (behind_prompt(v) for v in (self.soft, self.ids, self.weights))
        with mixed(module.core.get_input_embeddings(), ids, weights, at):
            return self.rows.states(module, mask)


class SoftTokens(Tokens):
    """Mixtures by the density of their Gumbel noise, tokens by their probability. For engine `soft`.

    Source: SofT-GRPO, arXiv 2511.06411; zz1358m/SofT-GRPO-master, torch_functional.py (`soft_token_log_prob`).
    """

    def work(self, rollouts: Rollouts) -> Tensor:
        """(B, T, 2 + 2K) float64: token, whether it is a mixture, the K tokens of it, their perturbed log-probs."""
        actions = rollouts.actions.double()[..., None]
        if SOFT not in rollouts.replay:
            return torch.cat([actions, torch.zeros_like(actions)], dim=-1)
        kept = rollouts.replay
        return torch.cat([actions, kept[SOFT].double()[..., None], kept[IDS].double(), kept[GUMBELS].double()], dim=-1)

    def laid(self, rows: Rows, rollouts: Rollouts) -> Rows:
        if SOFT not in rollouts.replay or not rollouts.replay[SOFT].any():
            return rows
        if not isinstance(rows, Plain):
            raise PolicyError(
                "policy.likelihood=soft_tokens scores plain rows of models that take batches; set "
                "policy.shared_prompt=off and policy.reuse_prefill=off"
            )
        kept = rollouts.replay
        return Mixed(rows, kept[SOFT] > 0, kept[IDS].long(), kept[WEIGHTS])

    def score(self, work: Tensor, predict: Chunk, asked: Sequence[Need]) -> dict[str, Tensor]:
        token, soft, kept = work[:, 0].long(), work[:, 1] > 0, work[:, 2:]
        count = kept.shape[1] // 2
        numbers = super().score(token, replace(predict, actions=token), asked)
        if not count or not soft.any():
            return numbers
        ids, gumbels = kept[:, :count].long(), kept[:, count:].to(predict.logits)
        log_probs = predict.logits.gather(-1, ids) - predict.normalizer[:, None]
        return numbers | {"log_probs": torch.where(soft, soft_token_log_prob(log_probs, gumbels), numbers["log_probs"])}
