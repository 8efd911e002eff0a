"""A draft and its edit are one rollout, and only what the edit leads to is judged."""

from __future__ import annotations

import torch

from mmrl.objective.episodes import COLUMNS, last_parts, with_any
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.edits import EDIT, ask_drafts, check_edits
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, MASKED, stage


@stage(
    "rollout",
    "reflectdrive_2",
    paper="ReflectDrive-2: RL-aligned self-editing for discrete diffusion driving, arXiv 2605.04647",
    formula="d_i ~ pi(. | q), e_i ~ pi(. | q, d_i), r_i = r(e_i); both train on what e_i earned",
    confidence="reconstructed",
    modalities=(*LANGUAGE, *MASKED),
)
class ReflectDrive2(Strategy):
    """Every draft is edited once by the policy that wrote it; the reward of the edit is that of both.

    drafts    of a group, half of its size if not given: a step costs what it did
    template  what is put behind the user's words for the edit, {draft} in it

    Columns: `episode (B,)`, the draft's member, -1 on drafts, and `part (B,)`, 0 on drafts and 1 on edits. Edits count;
    a draft counts itself only where it was empty, and could not be edited. Credit `reflectdrive_2` gives drafts what
    their edits earned. Drafts are scored like answers, which nothing reads but `reward/...` of the metrics; evaluation
    does not edit. Source: the paper's abstract. There a masked planner writes over tokens of its draft in place; here
    the draft is shown, and the edit is written anew.
    """

    origins = (OWN, SHOWN)
    columns = COLUMNS

    def __init__(self, *, drafts: int | None = None, template: str = EDIT) -> None:
        check_edits("reflectdrive_2", drafts, template)
        self.drafts, self.template = drafts, template
        self._edited: set[int] = set()

    def ask(self, step: Step) -> Plan:
        return ask_drafts("reflectdrive_2", self.drafts, step)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._edited = set()
        groups = set(batch.group.tolist())
        asks = [
            Ask(1, group=group, note=member, trains="shown", columns={"episode": float(member), "part": 1.0})
            for group in sorted(groups - self._edited)
            for member in sorted(batch.member[batch.group == group].tolist())
        ]
        self._edited |= groups
        last = last_parts(batch, torch.ones_like(batch.counted))
        return Plan(asks, counted=last, trained=with_any(last, batch))

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        """The prompt with the draft behind it; None where the draft is empty."""
        assert rows is not None
        draft = str(rows.outputs[rows.member.tolist().index(ask.note)]).strip()
        if not draft:
            return None
        return with_text(prompt, filled(self.template, "reflectdrive_2", draft=draft), "draft")
