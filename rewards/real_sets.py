r"""Sets of real numbers, however they are written: `(-\infty, 3)`, `x < 3`, `\{x \mid x < 3\}`, `]-\infty, 3[`.

A set is its pieces, each between two ends whose texts stay LaTeX: whether two ends are the same number is asked of
whoever compares expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmrl.rewards import answers
from mmrl.rewards.numbers import number

FAR = "\\infty"
MOST = 50  # parts of a union
_PLAINER = (
    (re.compile(r"\\left|\\right|\\[bB]igg?[lr]?(?![a-z])|\\[,;:! ]|~|\$"), " "),
    (re.compile(r"\\leq?(?:slant|q)?(?![a-z])|\u2264|<="), "\u2264"),
    (re.compile(r"\\geq?(?:slant|q)?(?![a-z])|\u2265|>="), "\u2265"),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\\neq?(?![a-z])|\u2260|!="), "\u2260"),
    (re.compile(r"\+?\s*(?:\\infty|\u221e|\binfinity\b)"), r" \\infty"),
    (re.compile(r"-\s*\\infty"), r"-\\infty"),
    (re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\u211d|\ball real numbers\b|\ball reals\b", re.IGNORECASE), "\u211d"),
    (re.compile(r"\\in(?![a-z])|\u2208"), "\u2208"),
    (re.compile(r"\\cup(?![a-z])|\\lor(?![a-z])|\\vee(?![a-z])|\\text\s*\{\s*or\s*\}|\bor\b|\u222a"), "\u222a"),
    (re.compile(r"\\land(?![a-z])|\\wedge(?![a-z])|\\text\s*\{\s*and\s*\}|\band\b"), "\u2227"),
)
_BUILT = re.compile(r"\\?\{\s*(\w)(?:\s*\u2208\s*\u211d)?\s*(?:\\mid|\||:)\s*(.*?)\\?\}\s*")
_MEMBER = re.compile(r"\s*\w\s*\u2208\s*(.*)")
_SPAN = re.compile(r"\s*([\[(\]])(.*)([\])\[])\s*")
_WITHOUT = re.compile(r"\s*\u211d\s*\\(?:setminus|backslash)\s*\\?\{([^{},]+?)\s*\\?\}\s*")
_SIGN = re.compile("([<>\u2264\u2265\u2260])")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|phi)")
_SIZE = re.compile(r"\|\s*([A-Za-z])\s*\|")


@dataclass(frozen=True)
class Piece:
    """All between two ends, and each end itself where it is closed; an end that is far away is open."""

    low: str
    high: str
    low_closed: bool = False
    high_closed: bool = False


@dataclass(frozen=True)
class Written:
    """The pieces, whether they are told in relations or unions, and of which variable, "" for none."""

    pieces: tuple[Piece, ...]
    told: bool
    variable: str = ""


def read(text: str) -> Written | None:
    """None for what is no set of reals for certain; an interval by itself, which may be a point, is not `told`."""
    for pattern, plain in _PLAINER:
        text = pattern.sub(plain, text)
    text = answers.bare(text).strip().rstrip(".")
    variable = ""
    if built := _BUILT.fullmatch(text):
        variable, text = built[1], built[2]
    elif member := _MEMBER.fullmatch(text):
        text = member[1]
    if text.count("\u222a") >= MOST:
        return None
    parts = [_both(part) if "\u2227" in part else _one(part) for part in text.split("\u222a")]
    if not parts or any(part is None for part in parts):
        return None
    names = {name for part in parts if part for name in [part[1]] if name} | ({variable} if variable else set())
    pieces = tuple(piece for part in parts if part for piece in part[0])
    told = bool(names or variable) or len(parts) > 1 or len(pieces) != 1 or FAR in pieces[0].low + pieces[0].high
    return Written(pieces, told, names.pop() if names else "") if len(names) < 2 else None


def same(first: Written, second: Written, equal: Callable[[str, str], bool]) -> bool:
    """Whether both have the same pieces, in any order. equal  of two ends that are texts of LaTeX"""
    left = list(second.pieces)
    for piece in first.pieces:
        found = next((other for other in left if _alike(piece, other, equal)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _alike(one: Piece, other: Piece, equal: Callable[[str, str], bool]) -> bool:
    if (one.low_closed, one.high_closed) != (other.low_closed, other.high_closed):
        return False
    ends = ((one.low, other.low), (one.high, other.high))
    return all(a == b or (FAR not in a + b and equal(a, b)) for a, b in ends)


Part = tuple[Sequence[Piece], str]


def _one(text: str) -> Part | None:
    """The pieces of an interval, a relation or all reals, and the variable where one is named."""
    if text.strip() == "\u211d":
        return [Piece(f"-{FAR}", FAR)], ""
    if without := _WITHOUT.fullmatch(text):
        return _around(without[1].strip()), ""
    signs = _SIGN.split(text)
    if len(signs) > 1:
        return _related([each.strip() for each in signs])
    span = _SPAN.fullmatch(text)
    ends = [each.strip() for each in span[2].split(",")] if span else []
    if span is None or len(ends) != 2 or not all(ends) or re.search(r"[\[\]]", span[2]):
        return None
    return [_piece(ends[0], ends[1], span[1] == "[", span[3] == "]")], ""


def _related(parts: list[str]) -> Part | None:
    """`x < 3`, `3 > x`, `2 < x < 5`, `|x| > 1`, `x \\neq 2`, as operands with the signs between them."""
    if not all(parts):
        return None
    if len(parts) == 5 and _VARIABLE.fullmatch(parts[2]):
        one, two = parts[1], parts[3]
        if {one, two} <= {"<", "\u2264"}:
            return [_piece(parts[0], parts[4], one == "\u2264", two == "\u2264")], parts[2]
        if {one, two} <= {">", "\u2265"}:
            return [_piece(parts[4], parts[0], two == "\u2265", one == "\u2265")], parts[2]
        return None
    if len(parts) != 3:
        return None
    left, sign, right = parts
    if not _VARIABLE.fullmatch(left) and not _SIZE.fullmatch(left):
        left, right = right, left
        sign = sign.translate(str.maketrans("<>\u2264\u2265", "><\u2265\u2264"))
    closed = sign in "\u2264\u2265"
    if size := _SIZE.fullmatch(left):
        inner = [_piece(f"-{right}", right, closed, closed)]
        outer = [_piece(f"-{FAR}", f"-{right}", False, closed), _piece(right, FAR, closed, False)]
        sure = sign != "\u2260" and (number(right) or 0) > 0
        return (inner if sign in "<\u2264" else outer, size[1]) if sure else None
    if not _VARIABLE.fullmatch(left) or left in re.findall(r"\\?[A-Za-z]+", right):
        return None
    if sign == "\u2260":
        return _around(right), left
    piece = _piece(f"-{FAR}", right, False, closed) if sign in "<\u2264" else _piece(right, FAR, closed, False)
    return [piece], left


def _both(text: str) -> Part | None:
    """`x > 2 and x < 5`; no piece where nothing is both."""
    halves = [_one(part) for part in text.split("\u2227")]
    if len(halves) != 2 or any(half is None or len(half[0]) != 1 for half in halves):
        return None
    (first, name), (second, other) = ((half[0][0], half[1]) for half in halves if half)
    lower, upper = (first, second) if first.high == FAR else (second, first)
    low, high = number(lower.low), number(upper.high)
    if name != other or lower.high != FAR or upper.low != f"-{FAR}" or low is None or high is None:
        return None
    return ([Piece(lower.low, upper.high, lower.low_closed, upper.high_closed)] if low < high else []), name


def _around(point: str) -> list[Piece]:
    return [_piece(f"-{FAR}", point, False, False), _piece(point, FAR, False, False)]


def _piece(low: str, high: str, low_closed: bool, high_closed: bool) -> Piece:
    low, high = (each.strip() for each in (low, high))
    return Piece(low, high, low_closed and FAR not in low, high_closed and FAR not in high)
