"""Which rows train, by what their group achieved: LightningRL's filter, DYPO's routing, RED's dropped negatives."""

from __future__ import annotations

import torch

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import group_count, group_extreme, group_mean, group_rank
from mmrl.objective.numerics import labels, row_uniform
from mmrl.record import Batch, Selection
from mmrl.stages import LANGUAGE, stage


@stage(
    "group",
    "lightningrl_filter",
    method="lightningrl",
    paper="LightningRL, arXiv 2603.13319",
    formula="drop prompts that are all wrong, or whose speeds differ by less than `spread`",
    confidence="verified",
    needs=("components",),
    modalities=LANGUAGE,
)
def lightningrl_filter(
    batch: Batch, *, accuracy: str = "accuracy", speed: str = "tokens_per_forward", spread: float = 0.01
) -> Selection:
    """Keep prompts that were solved at least once and decoded at different speeds.

    accuracy, speed  names of the two reward components
    spread           smallest range of speeds that still teaches something

    Source: SJTU-DENG-Lab/LightningRL, configs/lightningrl.yaml.
    """
    for name in (accuracy, speed):
        if name not in batch.components:
            raise ConfigError(f"lightningrl_filter: {unknown('reward component', name, batch.components)}")
    solved = group_extreme(batch.components[accuracy], batch.group, batch.counted) > 0
    fastest = group_extreme(batch.components[speed], batch.group, batch.counted)
    slowest = group_extreme(batch.components[speed], batch.group, batch.counted, largest=False)
    keep = solved & (fastest - slowest >= spread)
    return Selection(counted=batch.counted & keep, trained=batch.trained & keep)


@stage(
    "group",
    "dypo_routing",
    method="dypo",
    paper="DYPO, arXiv 2604.08926",
    formula="all wrong: imitate the teacher; all right: skip; mixed: train the own samples",
    confidence="verified",
    needs=("expert",),
    modalities=LANGUAGE,
)
def dypo_routing(batch: Batch) -> Selection:
    """All-wrong prompts train on teacher traces, mixed ones on their own samples, solved ones not at all.

    Teacher traces are members of the group marked in `expert (B,)`; they never enter a baseline. Pair it with
    regularizer `nll`, rows "expert". Source: equations 4 and 5.
    """
    expert = batch["expert"].bool()
    own = batch.counted & ~expert
    success = group_count(batch.group, own & (labels(batch) > 0.5))
    total = group_count(batch.group, own)
    hard, mixed = success == 0, (success > 0) & (success < total)
    return Selection(counted=own, trained=batch.trained & torch.where(expert, hard, mixed))


@stage(
    "group",
    "red_drop",
    method="rec_opmd_asymre",
    paper="RED-drop, in: Group-relative REINFORCE is secretly off-policy, arXiv 2509.24203",
    formula="drop surplus negatives at random until negatives <= positives, positive: r >= mean",
    confidence="verified",
)
def red_drop(batch: Batch) -> Selection:
    """Balances a group by dropping random negatives; the baseline is taken over what is left.

    Draws are keyed by (seed, step, group, member). Source: Trinity-RFT, rec_advantage.py.
    """
    good = batch.counted & (batch.reward >= group_mean(batch.reward, batch.group, batch.counted))
    bad = batch.counted & ~good
    # negatives in random order, everything else behind them
    draw = torch.where(bad, row_uniform(batch, "red_drop")[:, 0].double(), 2.0)
    surplus = bad & (group_rank(draw, batch.group) >= group_count(batch.group, good))
    return Selection(counted=batch.counted & ~surplus, trained=batch.trained & ~surplus)
