"""A teacher that is the policy itself, told how the prompt can be solved."""

from __future__ import annotations

from collections.abc import Mapping

from mmrl.record import Prompt, Rollouts
from mmrl.rollout.hints import filled, first_text, with_text
from mmrl.rollout.plan import Strategy
from mmrl.stages import LANGUAGE, stage

SOLVED = "A right answer to this:\n{solution}"


@stage(
    "rollout",
    "privileged",
    method="sdpo",
    paper="SDPO: self-distillation from privileged context, 2026; code lasgroup/SDPO",
    formula="the teacher of a group sees q and a right member's answer, or the solution of the data set",
    confidence="partly",
    modalities=LANGUAGE,
)
class Privileged(Strategy):
    """Puts the prompt a teacher sees beside each group's: credit `sdpo` and `srpo` read its log-probs.

    column    of the data set: a solution for groups in which nobody was right; none, if empty
    template  what is put behind the user's words, {solution} in it

    Of right members the shortest is shown. Groups without anything to show have no teacher, whose log-probs then are
    the policy's own. One prompt serves the whole group, so a right member may be its own teacher: the credits leave
    right rows out. Source: lasgroup/SDPO; there each row sees another sibling, with its reasoning removed.
    """

    origins = ()

    def __init__(self, *, column: str = "", template: str = SOLVED) -> None:
        filled(template, "rollout 'privileged'", solution="")
        self.column, self.template = column, template
        self.data_columns = (column,) if column else ()

    def beside(self, prompt: Prompt, rows: Rollouts) -> Mapping[str, Prompt]:
        solution = right_answer(rows) or (first_text(prompt, self.column) if self.column else None)
        if solution is None:
            return {}
        return {"teacher": with_text(prompt, filled(self.template, "privileged", solution=solution), "teacher")}


def right_answer(rows: Rollouts) -> str | None:
    """The shortest right answer that the policy sampled for this step, the first among equals."""
    assert rows.success is not None and rows.source is not None
    right = (rows.success == 1) & (rows.source == 0)
    answers = sorted((int(rows.length[i]), int(rows.member[i]), i) for i in right.nonzero().squeeze(1).tolist())
    return str(rows.outputs[answers[0][2]]) if answers else None
