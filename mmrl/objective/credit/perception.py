"""Perception credit: which tokens depend on the image, and how rollouts are scaled by it.

Every method compares the log-probs of the sampled tokens with those of the same tokens under a changed prompt
(media blacked out, removed), from one extra pass without gradient per rollout batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.errors import ConfigError, unknown
from mmrl.objective.credit.tokens import (
    check_share,
    top_tokens,
    top_tokens_per_row,
    training_tokens,
)
from mmrl.objective.groups import group_extreme, group_mean, masked_mean
from mmrl.objective.numerics import either, row_uniform
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, NEEDS, Need, View, stage

METRICS = ("k3_sampled", "abs_log_ratio")
PATCH_BLACK = {"kind": "patch_black", "share": 0.5, "size": 14}


def visual_dependence(log_probs: Tensor, perturbed: Tensor, mask: Tensor, metric: str = "k3_sampled") -> Tensor:
    """(B, T) how much the sampled token owes to the image; 0 outside the mask.

    k3_sampled     exp(d) - d - 1 with d = lp_perturbed - lp clipped to [-20, 20], then clipped to [0, 10]
    abs_log_ratio  |lp - lp_perturbed|
    """
    if metric not in METRICS:
        raise ConfigError(unknown("metric", metric, METRICS))
    difference = (perturbed - log_probs).masked_fill(~mask, 0.0)
    if metric == "abs_log_ratio":
        return difference.abs()
    difference = difference.clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(0, 10)


def view_of(view: str | Mapping[str, Any]) -> View:
    """The view a recipe names: `patch_black`, or `{kind: patch_black, share: 0.6, size: 14}`."""
    options = {"kind": view} if isinstance(view, str) else dict(view)
    if "kind" not in options:
        raise ConfigError(f"view: expected a kind, as in {{kind: patch_black, share: 0.5, size: 14}}, got {options}")
    return View.of(options.pop("kind"), **options)


@stage(
    "credit",
    paper="Bridging Perception and Reasoning: Token Reweighting for RLVR in Multimodal LLMs, arXiv 2603.25077",
    formula="A_it * w_it; w = gamma_r on the top 30% by entropy, else gamma_p on the top 30% by |lp - lp_no_image|, "
    "else 0",
    confidence="partly",
    needs=lambda *, entropy_top_p=0.95, **_: {
        "entropy": Need("entropy", options=(("top_p", entropy_top_p),)),
        "media_free_log_probs": NEEDS["media_free_log_probs"],
    },
    scope="batch",
    modalities=LANGUAGE,
)
def tor(
    advantage: Tensor,
    batch: Batch,
    *,
    reasoning_share: float = 0.3,
    perception_share: float = 0.3,
    gamma_reasoning: float = 1.0,
    gamma_perception: float = 0.5,
    entropy_top_p: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Keep the most uncertain (reasoning) and the most image-dependent (perception) tokens of the batch. (B, T)

    reasoning_share, perception_share  of all training tokens of the batch; smaller trains on fewer tokens
    gamma_reasoning, gamma_perception  weights; a token in both sets takes gamma_reasoning
    entropy_top_p                      the entropy is that of the renormalised top-p distribution

    Source: arXiv 2603.25077 and a re-implementation of its equations 5 to 9; no code by the authors.
    Ours: exactly ceil(share * N) tokens with keyed random ties, since most truncated entropies are 0 and a
    quantile threshold would select everything; every response token stays in the denominator.
    """
    check_share("reasoning_share", reasoning_share)
    check_share("perception_share", perception_share)
    where = training_tokens(batch)
    dependence = visual_dependence(batch.old_log_probs, batch["media_free_log_probs"], batch.mask, "abs_log_ratio")
    reasoning = top_tokens(batch["entropy"], where, reasoning_share, row_uniform(batch, "tor reasoning"))
    perception = top_tokens(dependence, where, perception_share, row_uniform(batch, "tor perception"))
    weight = torch.where(
        reasoning, advantage.new_tensor(gamma_reasoning), either(perception, gamma_perception, 0.0, advantage)
    )
    return advantage * weight, batch.loss_mask


@stage(
    "credit",
    paper="Spotlight on Token Perception for Multimodal RL, arXiv 2510.09285",
    formula="A_i * scale_i on the top p of each response by S = clip(k3(lp, lp_masked), 0, 10), 0 elsewhere; "
    "scale = beta_min + n'(beta_max - beta_min), n' = min-max of mean S over the optimizer step",
    confidence="verified",
    needs=lambda *, view, **_: {"perturbed_log_probs": Need("log_probs", under=view_of(view))},
    scope="update",
    modalities=LANGUAGE,
)
def vppo(
    advantage: Tensor,
    batch: Batch,
    *,
    share: float = 0.4,
    beta_min: float = 0.9,
    metric: str = "k3_sampled",
    view: str | Mapping[str, Any] = PATCH_BLACK,
) -> tuple[Tensor, Tensor]:
    """Update only each response's most image-dependent tokens, and scale responses by their mean dependence. (B, T)

    share              of each response that keeps its advantage; 1 keeps every token
    beta_min           weight of the least image-dependent response; 1 turns the scale off
    metric             k3_sampled (released code) or abs_log_ratio
    view               the corrupted prompt; by default half of the 14-pixel squares are blacked

    The mean scale over an optimizer step is 1. Masked tokens stay in the denominator.
    Source: the authors' code (VPPO-RL); the paper's text defines S as a KL of full distributions, the code uses
    the sampled token. Ours: minimum, maximum and mean all cover the whole optimizer step (theirs: one device,
    one micro-batch), and videos are corrupted as images are.
    """
    check_share("share", share)
    where = training_tokens(batch)
    dependence = visual_dependence(batch.old_log_probs, batch["perturbed_log_probs"], batch.mask, metric)
    chosen = top_tokens_per_row(dependence, where, share, row_uniform(batch, "vppo"))
    scale = trajectory_scale(masked_mean(dependence, batch.mask), batch.update, where.any(1), beta_min)
    return advantage * chosen * scale[:, None].to(advantage.dtype), batch.loss_mask


def trajectory_scale(dependence: Tensor, update: Tensor, where: Tensor, beta_min: float) -> Tensor:
    """(B,) from `beta_min` for the least to `beta_max` for the most dependent response of an optimizer step.

    `beta_max` makes the mean over the step 1. All equal (within 1e-6): 1 for every response.
    """
    low = group_extreme(dependence, update, where, largest=False)
    spread = group_extreme(dependence, update, where) - low
    flat = spread <= 1e-6
    share = ((dependence - low) / spread.masked_fill(flat, 1.0)).clamp(0, 1)
    beta_max = beta_min + (1 - beta_min) / (group_mean(share, update, where) + 1e-8)
    return torch.where(flat, torch.ones_like(share), beta_min + share * (beta_max - beta_min))


@stage(
    "credit",
    paper="TGRL: trajectory-guided RL, arXiv 2603.26126",
    formula="A_it (1 + lambda S'_it) on expert tokens, S' = visual dependence over its maximum in the trace",
    confidence="reconstructed",
    needs=lambda *, view, **_: {
        "perturbed_log_probs": Need("log_probs", under=view_of(view)),
        **columns("expert"),
    },
    modalities=LANGUAGE,
)
def tgrl(
    advantage: Tensor, batch: Batch, *, strength: float = 1.0, view: str | Mapping[str, Any] = PATCH_BLACK
) -> tuple[Tensor, Tensor]:
    """Expert tokens that depend on the image weigh more: they show how evidence enters the reasoning. (B, T)

    strength  lambda: how much more the most image-dependent token of an expert trace weighs
    view      the corrupted prompt

    Reads `expert (B,)`. Reconstructed from the abstract; pair it with group `expert_filter` and trust region
    `expert_shaped`.
    """
    dependence = visual_dependence(batch.old_log_probs, batch["perturbed_log_probs"], batch.mask)
    most = dependence.amax(1, keepdim=True)
    weight = 1 + strength * dependence / torch.where(most > 0, most, torch.ones_like(most))
    expert = batch["expert"].bool()[:, None]
    return torch.where(expert, advantage * weight.to(advantage.dtype), advantage), batch.loss_mask
