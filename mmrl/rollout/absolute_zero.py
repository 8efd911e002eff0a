"""Tasks without data: the policy writes sums, a calculator answers them, the policy solves them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from mmrl.record import Prompt
from mmrl.rollout.proposing import Proposal, Proposing, asking, tagged, without_media
from mmrl.stages import LANGUAGE, stage

INVITATION = (
    "Write one task for a student: an expression of whole numbers with +, -, *, // and %, which is hard and can be "
    "worked out. Put it between <question> and </question>."
)
LARGEST, LONGEST = 10**9, 200
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip


def calculated(expression: str) -> int | None:
    """The value of a sum of whole numbers; None for anything else, for a division by 0 and for what grows too large.

    A number alone is no task. Nothing is ever evaluated but the five operators above.
    """
    if len(expression) > LONGEST:
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        return _value(tree) if isinstance(tree, ast.BinOp) else None
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_value(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    else:
        raise ValueError(f"no whole number or operator: {ast.dump(node)[:40]}")
    if abs(value) > LARGEST:
        raise ValueError("too large")
    return value


@stage(
    "rollout",
    "absolute_zero",
    paper="Absolute Zero, arXiv 2505.03335",
    formula="q ~ pi(. | invitation), a = run(q); o ~ pi(. | q) train, and q by shaping `proposals`",
    confidence="partly",
    modalities=LANGUAGE,
)
class AbsoluteZero(Proposing):
    """Beside the prompts of a step the policy writes tasks whose answer a calculator knows, and solves them.

    proposers, proposals, solvers  as of every proposing strategy: groups that write, tasks of each, answers to a task

    The tasks are expressions of whole numbers. The authors' are programs in three kinds of reasoning, and earlier tasks
    stand in the invitation as examples; neither is here. Pictures of the prompt that a group begins with are left out.
    Source: LeapLabTHU/Absolute-Zero-Reasoner for the reward.
    """

    def invite(self, prompt: Prompt) -> Prompt:
        return without_media(asking(prompt, INVITATION, "propose"))

    def read(self, text: str, seed: str) -> Proposal | None:
        expression = tagged(text, "question")
        value = None if expression is None else calculated(expression)
        return None if value is None else Proposal(f"What is {expression}? Answer with a number.", str(value))

    def pose(self, prompt: Prompt, proposal: Proposal) -> Prompt:
        return without_media(super().pose(prompt, proposal))
