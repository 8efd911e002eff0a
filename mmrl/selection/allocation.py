"""Which answers to which prompt train: HiLL's best hint, SELF's curation."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.columns import COLUMNS, Column
from mmrl.objective.groups import masked_mean
from mmrl.objective.numerics import labels
from mmrl.objective.shaping.hints import hint_reward
from mmrl.record import Batch, Selection
from mmrl.stages import LANGUAGE, Need, View, stage


def _hill_reads(**_) -> dict[str, Need | Column]:
    bare = Need("log_probs", under=View.of("beside", prompt="bare"))
    return {n: COLUMNS[n] for n in ("success", "prompt", "hint")} | {"bare_log_probs": bare}


@stage(
    "group",
    paper="HiLL: hints that transfer, 2026; code Andree-9/HiLL, hinter_utils.py",
    formula="of each prompt the hint of the largest R = b exp(min(D, 0)/T), b = 1 - p^n - (1 - p)^n; none, if R is 0",
    confidence="verified",
    needs=_hill_reads,
    modalities=LANGUAGE,
)
def hill(batch: Batch, *, temperature: float = 0.3, form: str = "group") -> Selection:
    """Of several hints for a prompt, the one that makes answers right which stay likely without it trains.

    temperature  T: how much relying on the hint costs
    form         "group" or "variance", see `hint_reward`

    Every hint's rollouts are a group; `prompt (B,)` says which belong together, `hint (B,)` numbers the hint, 0 for
    none, and `bare_log_probs (B, T)` are those of the same answers without the hint. Rollouts train with the hint
    they were sampled under. The hinter itself is not trained here: `hint_reward` is its reward.
    """
    keep = torch.zeros_like(batch.counted)
    assert batch.prompt is not None
    for prompt in torch.unique(batch.prompt).tolist():
        keep |= batch.group == best_hint(batch, batch.prompt == prompt, temperature, form)
    return Selection(counted=batch.counted & keep, trained=batch.trained & keep)


def best_hint(batch: Batch, rows: Tensor, temperature: float, form: str) -> int:
    """The group of this prompt whose hint is worth most; the group without a hint, or the first, if none is."""
    hint, right = batch["hint"], labels(batch)
    groups = torch.unique(batch.group[rows]).tolist()
    plain = [g for g in groups if (hint[batch.group == g] == 0).all()]
    without, best, value = None, (plain or groups)[0], 0.0
    bare, shown = (masked_mean(v, batch.mask) for v in (batch["bare_log_probs"], batch.old_log_probs))
    for g in plain + [g for g in groups if g not in plain]:
        mine = (batch.group == g) & batch.counted & ~torch.isnan(right)
        if not mine.any():
            continue
        reward = hint_reward(
            right[mine], bare[mine], shown[mine], temperature=temperature, form=form, without=without
        )  # fmt: skip
        if g in plain:
            without = reward
        elif reward > value:
            best, value = g, reward
    return best


@stage(
    "group",
    "self",
    paper="The reasoning boundary paradox (SELF), arXiv 2510.02230",
    formula="keep a prompt iff its greedy answer is wrong",
    confidence="verified",
    needs=("greedy_success",),
)
def self_curation(batch: Batch, *, solved: float = 0.5) -> Selection:
    """Prompts the policy already solves greedily do not train: they only sharpen it.

    solved  a greedy answer of at least this success (or reward, where no reward is a verifier) counts as right

    Reads `greedy_success (B,)`: the trainer lets the policy answer each prompt once more in its deterministic mode
    (argmax, or the ODE from a fixed noise). Nothing is asked in the place of what is dropped. Source:
    mail-research/SELF-llm-interference, ray_trainer.py.
    """
    keep = ~(batch["greedy_success"] >= solved)
    return Selection(counted=batch.counted & keep, trained=batch.trained & keep)
