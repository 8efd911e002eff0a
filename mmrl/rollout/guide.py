"""Failed groups sample with a hint and learn without it."""

from __future__ import annotations

import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, first_text, with_text
from mmrl.rollout.origins import HINTED
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

HINT = "Hint: {hint}"


@stage(
    "rollout",
    "guide",
    paper="Adaptive Guidance Accelerates Reinforcement Learning of Reasoning Models (Guide-GRPO), arXiv 2506.13923",
    formula="where no member of a group is right: members o ~ pi(. | q, h) in the place of wrong ones, "
    "rho_t = pi_new(o_t | q, o_<t) / pi_old(o_t | q, h, o_<t)",
    modalities=LANGUAGE,
    confidence="verified",
)
class Guide(Strategy):
    """Members who saw a hint take the places of wrong ones; the loss is under the bare prompt.

    column    of the data set: the hint, a text (or several, of which the first is shown)
    count     hinted members of a failed group, half of its size if not given: the failures that stay are the contrast
              in which a right one teaches. The release asks for a whole group and compares hinted members alone
    template  what is put behind the user's words while sampling, {hint} in it

    Column `hint (B,)` is 1 on them. Their old log-probs are those under the hint, so the ratio corrects for its
    absence; trust region `guide` bounds it as the authors do. Rows of the data set without a hint keep their failed
    group. Source: vaskar-open-source-research/guide_rl, ray_trainer.py.
    """

    origins = (HINTED,)
    columns = {"hint": 0.0}

    def __init__(self, *, column: str = "hint", count: int | None = None, template: str = HINT) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"rollout 'guide': count={count} asks for nobody; choose at least 1, or leave it out")
        filled(template, "rollout 'guide'", hint="")
        self.column, self.count, self.template = column, count, template
        self.data_columns = (column,)
        self._tried: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._tried = set()
        failed = [g for g in failed_groups(batch) if g not in self._tried]
        self._tried |= set(failed)
        asks = [
            Ask(self.count or max(step.group_size // 2, 1), group=g, note="hint", columns={"hint": 1.0}) for g in failed
        ]
        keep = replaced(batch, batch["hint"] > 0)
        return Plan(asks, counted=keep, trained=keep)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        hint = first_text(prompt, self.column)
        return None if hint is None else with_text(prompt, filled(self.template, "guide", hint=hint), "hint")


def replaced(batch: Batch, new: torch.Tensor) -> torch.Tensor:
    """(B,) bool: all rows but as many of a group's first as it has `new (B,)` ones."""
    keep = torch.ones_like(new)
    for group in torch.unique(batch.group[new]).tolist():
        rows = batch.group == group
        old = (rows & ~new).nonzero().squeeze(1)
        order = torch.argsort(batch.member[old])
        keep[old[order][: int((rows & new).sum())]] = False
    return keep
