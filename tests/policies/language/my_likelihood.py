"""A likelihood of tokens that is no part of the package: smoothed, with a probe of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmrl.policies.language.likelihoods.tokens import Tokens
from mmrl.policies.language.log_probs import Chunk
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, Need, stage

SHARE = 0.1


class Smoothed(Tokens):
    """A tenth of the mean over all words, the rest of the word that was written."""

    probes = Tokens.probes | {"spread"}
    sampled = False

    def score(self, work: Tensor, predict: Chunk, asked: Sequence[Need]) -> dict[str, Tensor]:
        scores = super().score(work, predict, [need for need in asked if need.probe != "spread"])
        mean = (predict.logits - predict.normalizer[:, None]).clamp(min=-20).mean(-1)
        scores["log_probs"] = (1 - SHARE) * scores["log_probs"] + SHARE * mean
        return scores | {need.key: mean for need in asked if need.probe == "spread"}


class Blind(Tokens):
    """Says nothing of entropies."""

    probes = frozenset({"log_probs"})


class Unsaid(Smoothed):
    """Claims that the sampler's numbers are its own."""

    sampled = True


@stage(
    "regularizer",
    paper="-",
    confidence="ours",
    formula="-mean log p",
    needs=lambda **_: {"spread": Need("spread", weights="current")},
    modalities=LANGUAGE,
)
def even(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Every word keeps some probability."""
    return -evaluation["spread"]
