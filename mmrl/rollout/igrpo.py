"""The best of a few drafts becomes part of the prompt, and the group learns to beat it."""

from __future__ import annotations

import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

DRAFT = "An earlier answer of yours:\n{draft}\n\nImprove on it where you can, and answer again."


def best_draft(reward: torch.Tensor, length: torch.Tensor, member: torch.Tensor) -> int:
    """The member of the largest reward; among equals the shortest, then the first. Unscored drafts come last."""
    order = sorted(zip((-reward.nan_to_num(-torch.inf)).tolist(), length.tolist(), member.tolist(), strict=True))
    return int(order[0][2])


@stage(
    "rollout",
    "igrpo",
    paper="iGRPO: iterative drafts, arXiv 2602.09000",
    formula="drafts d_1..d_n ~ pi(. | q), d* = argmax r; o ~ pi(. | q, d*) train under (q, d*), drafts do not",
    confidence="partly",
    modalities=LANGUAGE,
)
class Igrpo(Strategy):
    """Drafts first, then a group that sees the best of them.

    drafts    how many; half of the group's size if not given, so that a step costs what it did
    template  what is put behind the user's words, {draft} in it

    Column `draft (B,)` is 1 on drafts, which neither count nor train. Answers without a draft are what evaluation asks
    for, as the paper does. Source: abstract and digests; the split of the budget and the choice among equals are ours.
    """

    origins = (OWN, SHOWN)
    columns = {"draft": 0.0}

    def __init__(self, *, drafts: int | None = None, template: str = DRAFT) -> None:
        if drafts is not None and drafts < 1:
            raise ConfigError(f"rollout 'igrpo': drafts={drafts}; choose at least 1")
        filled(template, "rollout 'igrpo'", draft="")
        self.drafts, self.template = drafts, template

    def _split(self, step: Step) -> tuple[int, int]:
        drafts = self.drafts or step.group_size // 2
        if not 0 < drafts < step.group_size - 1:
            raise ConfigError(
                f"rollout 'igrpo': {drafts} drafts of training.group_size={step.group_size} leave no group of two; "
                "choose fewer drafts or a larger group"
            )
        return drafts, step.group_size - drafts

    def ask(self, step: Step) -> Plan | None:
        drafts, _ = self._split(step)
        indices = step.draw(step.prompts_per_step)
        return Plan([Ask(drafts, index=i, columns={"draft": 1.0}) for i in indices])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        draft = batch["draft"] > 0
        refined = set(batch.group[~draft].tolist())
        asks = []
        for group in sorted(set(batch.group.tolist()) - refined):
            rows = batch.group == group
            best = best_draft(batch.reward[rows], batch.length[rows], batch.member[rows])
            asks.append(Ask(self._split(step)[1], group=group, note=best, trains="shown"))
        return Plan(asks, counted=~draft, trained=~draft)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        assert rows is not None
        place = rows.member.tolist().index(ask.note)
        return with_text(prompt, filled(self.template, "igrpo", draft=str(rows.outputs[place])), "draft")
