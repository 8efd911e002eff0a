"""Difficulty-aware normalization: the spread is shared by prompts of the same difficulty, not by one group."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.groups import (
    degenerate,
    group_centred,
    group_count,
    group_mean,
    group_normalized,
    group_std,
    quantile_level,
    representatives,
)
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "advantage",
    paper="Durian: Difficulty-aware Group Normalization for Multimodal RL, arXiv 2602.21743",
    formula="a_o A_GRPO + a_p (r - mean_prompt)/std(perception level) + a_r (r - mean_prompt)/std(confidence bin)",
    confidence="verified",
    needs=("visual_entropy",),
    scope="batch",
    relative=True,
    modalities=LANGUAGE,
)
def durian(
    batch: Batch,
    *,
    outcome: float = 0.4,
    perception: float = 0.3,
    reasoning: float = 0.3,
    bins: int = 12,
    length_mean: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """The prompt's own mean, over the reward spread of all prompts of the same difficulty. (B,)

    outcome, perception, reasoning  weights of plain GRPO, perceptual levels, confidence bins; all close in the paper
    bins         equal-count bins of prompt confidence; fewer when the batch holds less than two prompts a bin
    length_mean  confidence as the mean, not the sum, of log-probs: the sum calls short answers confident

    Perceptual levels cut the entropy of the image's feature spectrum at its quartiles. Each prompt counts once
    in the quantiles, and every reward of a level once in its standard deviation. A level without spread gives 0.
    Source: arXiv 2602.21743, equations 5 to 20. Its equation 14 sums probabilities where the text says
    log-probabilities: log-probabilities here. Ours: a prompt without image score has a level of its own kind.
    """
    counted = batch.counted & ~torch.isnan(batch.reward)
    scores = batch.old_log_probs.sum(1) / (batch.length.clamp(min=1) if length_mean else 1)
    confidence = group_mean(scores, batch.group, counted)
    dropped = group_count(batch.group, counted) == 0
    images = group_mean(batch["visual_entropy"].to(scores), batch.group)
    images = images.masked_fill(torch.isnan(batch["visual_entropy"]) | dropped, torch.nan)
    confidence = confidence.masked_fill(dropped, torch.nan)
    total = len(representatives(batch.group[counted]))
    bins = bins if total >= 2 * bins else max(1, total // 4)
    quartiles = torch.tensor([0.25, 0.75], dtype=torch.float64)
    cuts = torch.arange(1, bins, dtype=torch.float64) / bins
    terms = outcome * group_normalized(batch.reward, batch.group, counted, eps)
    terms = terms + perception * _shared(batch, quantile_level(images, batch.group, quartiles, True), counted)
    return terms + reasoning * _shared(batch, quantile_level(confidence, batch.group, cuts), counted)


def _shared(batch: Batch, level: Tensor, counted: Tensor) -> Tensor:
    """(B,) centred in the prompt's group, over the standard deviation of all rewards of the level."""
    flat = degenerate(batch.reward, level, counted)
    spread = group_std(batch.reward, level, counted).masked_fill(flat, 1.0)
    return group_centred(batch.reward, batch.group, counted).masked_fill(flat, 0.0) / spread
