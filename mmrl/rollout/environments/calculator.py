"""Arithmetic for a policy: numbers, + - * / ** % //, brackets, and a few functions. Nothing is ever evaluated as code:
the expression is parsed, and only the nodes named here are computed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from mmrl.record import Prompt
from mmrl.rollout.environments.base import MAX_TURNS, Done, Environment, Observation
from mmrl.rollout.environments.calls import BadCall, argument, call_in
from mmrl.stages import LANGUAGE, stage

EXAMPLE = '{"expression": "3 * (4 + 5)"}'
LONGEST = 200
LARGEST = 1e100
BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "sqrt": (math.sqrt, 1), "abs": (abs, 1), "round": (round, 1), "floor": (math.floor, 1), "ceil": (math.ceil, 1),
}  # fmt: skip


@stage(
    "environment",
    "calculator",
    paper="-",
    formula='<tool>{"expression": "3 * (4 + 5)"}</tool> is answered with its value',
    confidence="ours",
    modalities=LANGUAGE,
)
class Calculator(Environment):
    """The value of an arithmetic expression.

    max_turns  calls and the answer, at most
    """

    def __init__(self, *, max_turns: int = MAX_TURNS) -> None:
        self.max_turns = max_turns

    def step(self, state: Prompt, output: str) -> Observation | Done:
        try:
            arguments = call_in(output)
            if arguments is None:
                return Done()
            return Observation.of(f"{calculate(argument(arguments, 'expression', EXAMPLE)):.12g}")
        except BadCall as error:
            return Observation.of(f"{error}.", bad=error.cause)


def calculate(expression: Any) -> float:
    """The value of an arithmetic expression; BadCall says why there is none.

    >>> calculate("2 ** 10 - sqrt(16)")
    1020.0
    """
    if not isinstance(expression, str) or len(expression) > LONGEST:
        raise BadCall("wrong arguments", f"expected {EXAMPLE} of at most {LONGEST} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _bounded(_value(tree.body))
    except SyntaxError:
        raise BadCall("not arithmetic", f"{expression!r:.60} is no arithmetic expression") from None
    except ZeroDivisionError:
        raise BadCall("division by zero", f"{expression!r:.60} divides by zero") from None
    except (ValueError, OverflowError, RecursionError, MemoryError):
        raise BadCall("no value", f"{expression!r:.60} has no value") from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _bounded(math.pow(_value(node.left), _value(node.right)))  # of floats: a tower cannot eat the memory
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return _bounded(BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        function, count = FUNCTIONS[node.func.id]
        if len(node.args) == count and not node.keywords:
            return function(*map(_value, node.args))
    names = ", ".join(FUNCTIONS)
    raise BadCall("not arithmetic", f"expected numbers, + - * / // % **, brackets and {names}")


def _bounded(value: Any) -> Any:
    if not abs(value) <= LARGEST:
        raise OverflowError
    return value
