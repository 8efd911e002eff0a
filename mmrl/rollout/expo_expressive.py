"""An edit of each draft is tried, and the base imitates the better of both: value is never climbed through the base."""

from __future__ import annotations

import torch

from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.edits import EDIT, ask_drafts, check_edits
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.origins import OWN, SHOWN, brought
from mmrl.rollout.plan import Ask, Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "expo_expressive",
    paper="EXPO: Stable Reinforcement Learning with Expressive Policies, arXiv 2507.07986",
    formula="a_i ~ pi(. | q), a'_i ~ pi(. | q, a_i); a* = argmax of the value over a_i and a'_i; pi(. | q) imitates "
    "a*, pi(. | q, a) is trained by the value",
    confidence="partly",
    modalities=LANGUAGE,
)
class ExpoExpressive(Strategy):
    """A base that only imitates, and an editor of its drafts that only climbs.

    drafts    of a group, half of its size if not given; each is edited once, so that a step costs what it did
    template  what is put behind the user's words for the editor, {draft} in it

    Drafts (`edit` 0) neither count nor train. Edits (`edit` 1) are compared with the other edits of their group, and
    train under what they saw. The best of a group, a draft or an edit, comes back token by token under the bare prompt
    with `expert (B,)` 1, if it is worth more than nothing: regularizer `nll` with `rows: expert` imitates it. Among
    equals a draft is taken before an edit.

    Source: the paper's abstract, and a secondary description with the algorithm. There the value is a learned Q and the
    editor a small Gaussian policy; here the value is the reward, and the editor the same weights under another prompt.
    """

    origins = (OWN, SHOWN, brought("rewritten"))
    columns = {"edit": 0.0, "expert": 0.0}

    def __init__(self, *, drafts: int | None = None, template: str = EDIT) -> None:
        check_edits("expo_expressive", drafts, template)
        self.drafts, self.template = drafts, template
        self._edited: set[int] = set()
        self._chosen: set[int] = set()

    def ask(self, step: Step) -> Plan | None:
        return ask_drafts("expo_expressive", self.drafts, step)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._edited, self._chosen = set(), set()
        edit, expert = batch["edit"] > 0, batch["expert"] > 0
        groups = set(batch.group.tolist())
        choose = sorted(self._edited - self._chosen)
        self._chosen |= set(choose)
        asks = [
            Ask(1, group=g, note=int(batch.member[row]), trains="shown", columns={"edit": 1.0})
            for g in sorted(groups - self._edited) for row in _rows(batch, g)
        ]  # fmt: skip
        self._edited |= groups
        given = [Given("rewritten", group=g, note=best, columns={"expert": 1.0})
                 for g in choose if (best := _best(batch, g)) is not None]  # fmt: skip
        return Plan(asks, given, counted=edit, trained=edit | expert)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        assert rows is not None
        draft = str(rows.outputs[rows.member.tolist().index(ask.note)])
        return with_text(prompt, filled(self.template, "expo_expressive", draft=draft), "draft")

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        assert rows is not None
        place = rows.member.tolist().index(given.note)
        return [Answer(rows.actions[place][rows.mask[place]].cpu())]


def _rows(batch: Batch, group: int) -> list[int]:
    return (batch.group == group).nonzero().squeeze(1).tolist()


def _best(batch: Batch, group: int) -> int | None:
    """The member of a group that is worth most; None where nobody is worth more than nothing."""
    rows = torch.tensor(_rows(batch, group))
    reward = batch.reward[rows]
    if not bool((reward.nan_to_num(0) > 0).any()):
        return None
    order = torch.argsort(batch["edit"][rows], stable=True)  # drafts come first, and argmax takes the first of equals
    return int(batch.member[rows][order][reward[order].nan_to_num(-torch.inf).argmax()])
