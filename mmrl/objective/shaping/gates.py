"""Combining reward components: gates, vetoes, stages, rubrics. They replace the combined reward."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.robust import scored
from mmrl.objective.credit.rollouts import component
from mmrl.objective.groups import group_extreme
from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "shaping",
    paper="SearchLLM, 2026",
    formula="gate (base + sum w o) + (1 - gate)(mean min(b/t, 1) - 1), gate = prod 1[b_k >= t_k]",
    confidence="reconstructed",
    needs=("components",),
    waits=("gates",),
)
def searchllm(
    batch: Batch,
    *,
    gates: Mapping[str, float] | None = None,
    objectives: Mapping[str, float] | None = None,
    base: float = 0.0,
    sharpness: float | None = None,
) -> Tensor:
    """Bottom lines first: an output that misses one scores below every output that keeps them all. (B,)

    gates       {component: threshold} bottom lines
    objectives  {component: weight} that count once the gate is open; components of 0 or more
    base        added when the gate is open
    sharpness   None: a hard gate; else a product of sigmoids of that slope

    Reconstructed from the abstract.
    """
    if not gates:
        raise ConfigError("searchllm: give it gates, {component: threshold}")
    lines = torch.stack([component(batch, name, "searchllm") for name in gates], 1)
    bounds = torch.tensor(list(gates.values())).to(lines)
    if sharpness is None:
        gate = (lines >= bounds).all(1).to(lines.dtype)
    else:
        gate = torch.sigmoid(sharpness * (lines - bounds)).prod(1)
    earned = base + sum(w * component(batch, name, "searchllm") for name, w in (objectives or {}).items())
    missed = (lines / bounds.clamp(min=1e-12)).clamp(max=1).mean(1) - 1
    return _keep_unscored(batch, gate * earned + (1 - gate) * missed)


@stage(
    "shaping",
    paper="Rubric Anchors, arXiv 2508.12790",
    formula="sum w f(s) / sum |w|, f(s) = min(s, cap)/cap; a failed veto caps the reward",
    confidence="partly",
    needs=("components",),
    waits=("weights",),
)
def rubric_anchors(
    batch: Batch,
    *,
    weights: Mapping[str, float] | None = None,
    caps: Mapping[str, float] | None = None,
    vetoes: Mapping[str, float] | None = None,
    veto_value: float = 0.0,
    pairs: Mapping[str, float] | None = None,
) -> Tensor:
    """Rubric items, each a reward component in [0, 1], weighted into one reward. (B,)

    weights     {item: weight}; a negative weight penalises
    caps        {item: cap}: more than the cap earns nothing more (saturation)
    vetoes      {item: threshold}: below it the reward is at most `veto_value`
    pairs       {"a*b": weight}: an extra term for both together

    Weighted sum and veto from the abstract; saturation and interaction are reconstructed.
    """
    if not weights:
        raise ConfigError("rubric_anchors: give it weights, {component: weight}")
    total, size = torch.zeros_like(batch.reward), 0.0
    for name, weight in {**weights, **(pairs or {})}.items():
        score = torch.ones_like(batch.reward)
        for item in (part.strip() for part in name.split("*")):
            cap = (caps or {}).get(item, 1.0)
            score = score * component(batch, item, "rubric_anchors").clamp(max=cap) / cap
        total, size = total + weight * score, size + abs(weight)
    reward = total / size
    for name, threshold in (vetoes or {}).items():
        failed = component(batch, name, "rubric_anchors") < threshold
        reward = torch.where(failed, reward.clamp(max=veto_value), reward)
    return _keep_unscored(batch, reward)


@stage(
    "shaping",
    paper="CaRR / C-GRPO, arXiv 2601.06021",
    formula="0 if the outcome is 0, else (1 - a) outcome + a q (or q / max of the group)",
    confidence="verified",
    needs=("components",),
)
def carr_c_grpo(batch: Batch, *, share: float = 0.3, rubric: str = "rubric", normalize: bool = False) -> Tensor:
    """A rubric score counts only for right answers. (B,)

    share      of the rubric in the reward
    rubric     component with the share of items that hold, such as `connected_share`
    normalize  divide by the best of the group (the paper's text; the released branch uses the raw score)

    The incoming reward is the outcome. Source: the authors' code (THUDM/CaRR).
    """
    quality = component(batch, rubric, "carr_c_grpo")
    if normalize:
        best = group_extreme(quality, batch.group, scored(batch))
        quality = quality / torch.where(best > 0, best, torch.ones_like(best))
    shaped = (1 - share) * batch.reward + share * quality
    return _keep_unscored(batch, torch.where(batch.reward > 0, shaped, torch.zeros_like(shaped)))


def connected_share(items: Sequence[Collection[Any]], answer: Any) -> float:
    """Share of evidence items, each a set of entities, that a chain of shared entities connects to the answer."""
    reached: set[int] = set()
    entities = {answer}
    while True:
        more = {i for i, item in enumerate(items) if i not in reached and entities & set(item)}
        if not more:
            return len(reached) / len(items) if items else 0.0
        reached |= more
        entities |= set().union(*(items[i] for i in more))


@stage(
    "shaping",
    paper="PRS + VSPO: progressive reward shaping, arXiv 2512.07478",
    formula="sum_k c_k s_k prod_{j<k} 1[s_j >= t_j]",
    confidence="partly",
    method="prs_vspo",
    needs=("components",),
    waits=("stages",),
)
def progressive_stages(batch: Batch, *, stages: Sequence[Mapping[str, Any]] = ()) -> Tensor:
    """Later stages of a reward count only after the earlier ones pass: parse, then format, then quality. (B,)

    stages  in order, each {component: name, width: 1.0, threshold: 1.0}

    Source: abstract, and a public environment built on the paper for the gate.
    """
    if not stages:
        raise ConfigError("progressive_stages: give it stages, a list of {component, width, threshold}")
    total, open_gate = torch.zeros_like(batch.reward), torch.ones_like(batch.reward)
    for step in stages:
        score = component(batch, step["component"], "progressive_stages")
        total = total + step.get("width", 1.0) * score * open_gate
        open_gate = open_gate * (score >= step.get("threshold", 1.0))
    return _keep_unscored(batch, total)


def rubric_choice(margins: Sequence[float], baseline: float) -> tuple[int, int] | None:
    """(helpful, misleading) rubric of one preference pair, None if either is missing (C2, arXiv 2604.13618).

    margins   judge's log p(label) - log p(other) with each rubric; baseline the same without one. Helpful is the
              largest margin above max(0, baseline), misleading the smallest below min(0, baseline)
    """
    best = max(range(len(margins)), key=margins.__getitem__)
    worst = min(range(len(margins)), key=margins.__getitem__)
    if margins[best] > max(0.0, baseline) and margins[worst] < min(0.0, baseline):
        return best, worst
    return None


def _keep_unscored(batch: Batch, reward: Tensor) -> Tensor:
    """Rows that no verifier scored stay unscored, whatever their components say."""
    return torch.where(torch.isnan(batch.reward), batch.reward, reward.to(batch.reward.dtype))
