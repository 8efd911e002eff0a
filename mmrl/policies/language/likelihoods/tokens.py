"""`tokens`: a token is an action, with the log-prob it was drawn with.

A likelihood of your own is a subclass in a file of yours, `policy.likelihood: my.py:Mine`:

    class Mine(Tokens):
        sampled = False

        def score(self, work, predict, asked):
            scores = super().score(work, predict, asked)
            return scores | {"log_probs": ...}  # of predict.logits, (rows, V), and work, (rows,)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from mmrl.policies.language.log_probs import Chunk, probed
from mmrl.policies.language.probes.group_probes import VECTORS
from mmrl.policies.language.probes.token_probes import PROBES
from mmrl.policies.likelihood import Likelihood
from mmrl.record import Rollouts
from mmrl.stages import Need


class Tokens(Likelihood):
    """log p(token | what stands before it), under the temperature and suppressed ids it was sampled with.

    sampled  whether sampling gives the very numbers that `score` would: rollouts then keep the sampler's. Otherwise
             they are scored once more, right after they were written, as with `policy.old_log_probs: trainer`
    engines  whose rows bring along what `score` reads; None: all of them
    """

    probes = frozenset(PROBES) - VECTORS
    sampled: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...] | None] = None

    @property
    def actions(self) -> int:
        return self.config.max_new_tokens

    def work(self, rollouts: Rollouts) -> Tensor:
        """(B, T, ...) what is scored at each place of the mask; `score` is given it row by row, some at a time."""
        return rollouts.actions

    def laid(self, rows: Any, rollouts: Rollouts) -> Any:
        """`rows` of `rollouts` as they are laid out for the pass, with what else the model must be shown of them."""
        return rows

    def score(self, work: Tensor, predict: Chunk, asked: Sequence[Need]) -> dict[str, Tensor]:
        """`{"log_probs": (rows,), need.key: (rows,)}` of some rows of logits, inside the forward pass."""
        return probed(work, predict, asked)
