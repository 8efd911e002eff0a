"""How a policy asks for something: JSON between `<tool>` and `</tool>`.

    <tool>{"box": [200, 200, 450, 450]}</tool>

An output without the tag is an answer. The first call of an output counts; what stands before it is thought. The
arguments are checked by name and type, and a call that cannot be followed says in one line what was expected.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mmrl.errors import MMRLError

CALL = re.compile(r"<tool>(.*?)(?:</tool>|$)", re.DOTALL)


class BadCall(MMRLError):
    """A call that cannot be followed.

    cause  a few words that repeat from call to call, to be counted; the message is for the policy
    """

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


def call_in(output: str) -> dict[str, Any] | None:
    """The arguments of the call in an output, None where there is none; BadCall where they cannot be read."""
    found = CALL.search(output)
    if found is None:
        return None
    try:
        arguments = json.loads(found[1])
    except ValueError:
        raise BadCall("not JSON", 'a call is <tool>{"name": value}</tool>; this is no JSON') from None
    if not isinstance(arguments, dict):
        raise BadCall("not an object", 'a call is <tool>{"name": value}</tool>; this is no object')
    return arguments


def argument(arguments: dict[str, Any], name: str, example: str) -> Any:
    """The one argument `name` of a call; BadCall where it is missing or others come with it."""
    if set(arguments) != {name}:
        raise BadCall("wrong arguments", f"expected {example}, got {sorted(arguments)}")
    return arguments[name]


def numbers(values: Any, count: int, example: str) -> list[float]:
    """`count` finite numbers, or BadCall."""
    plain = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not plain or len(values) != count or not all(abs(v) < 1e9 for v in values):
        raise BadCall("wrong numbers", f"expected {example}, got {values!r:.60}")
    return [float(v) for v in values]
