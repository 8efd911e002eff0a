r"""Reading one number: signs, scales, words, fractions, powers, roots, pi, percent, thousands, units.

    number("-$1,234.50")   -1234.5         number(r"\frac{1}{2}")       .5         number("3 × 10^6")   3e6
    number("1 1/2")         1.5            number("minus twenty-one")  -21         number("5 cm^2")     5

A text with two different numbers holds none, unless it states one of them as "the answer". Negated numbers ("not 5"),
bounds ("at least 5"), sums, ratios, dates and unknowns ("5 + x", "3:2", "2x") are no numbers. Nothing is evaluated but
a product, quotient, power or root of numbers written out, in floating point.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mmrl.rewards import answers
from mmrl.rewards.languages import amounts, stated
from mmrl.rewards.spelled import tidy

LONGEST = 1500  # characters in which one number is looked for; of a longer text only its statements are read
MOST_READ = 50_000
CONSTANTS = {"π": math.pi, "\N{SCRIPT SMALL E}": math.e}
NEAR = 60  # characters around a number that may negate, bound or deny it
_NUMERAL = (
    r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?(?![\d.])"  # 1.234.567,8
    r"|\d{1,3}(?:\.\d{3})+,\d+(?![\d.,])"  # 1.234,5
    r"|\d{1,3}(?:,\d{3})+(?![\d])(?!,\d)(?:\.\d+)?(?:[eE][-+]?\d+)?"  # 1,234.5
    r"|\d{1,3}(?: \d{3})+(?![\d])(?:[.,]\d+)?"  # 1 234,5
    r"|(?:0,\d+|\d+,\d{1,2}|\d+,\d{4,})(?![\d,.]\d|\d)"  # 2,5
    r"|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
)
_TOKEN = re.compile(
    rf"(?P<number>{_NUMERAL})|(?P<constant>[π\u212f])|(?P<operator>[-+*/^()%√])|(?P<word>\\?[^\W\d_π]+(?:'[a-z]+)?)"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_BOUND = re.compile(
    r"(?:\b(?:at (?:least|most)|(?:no |not )?(?:more|less|fewer|greater|larger|smaller|higher|lower) "
    r"than|up to|over|under|"
    r"above|below|between|almost|nearly|within)|[<>≤≥≠±∛∜])\s*$",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"\b(?:there (?:is|are|was|were)|see|count|find|has|have) no\s+$"
    r"|(?:\b(?:not|never|neither|nor|cannot|without|except)|n't"
    r"|\b(?:instead of|rather than)(?![^,;:.!?]*\bthere (?:is|are|was|were)\b))\b"
    r"(?:(?!\bbut\b|\bit is\b|\bit's\b)[^,;:.!?]){0,40}$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\s*\)?\s*(?:(?:is|was|would be|are)\s+(?:not|wrong|incorrect|false|impossible|too)\b"
    r"|(?:is|was|are|ca|could)n't\b|can ?not be\b)",
    re.IGNORECASE,
)
_SPOILED_AFTER = re.compile(
    r"\s*(?:[:<>=]\s*[\d.]|\+/?|[±‰]|(?:or (?:more|less|fewer|above|below)|at (?:most|least)|and "
    r"(?:above|below))\b|[xyzXYZ](?![^\W\d_])|[hm]\s?\d"
    r"|D(?![^\W_])|\s?mill?\b)",
    re.IGNORECASE,
)  # fmt: skip
_IDENTIFIER = re.compile(r"[^\W\d]-?$|[\w)]_$|[\d.,]$|\d/$")
_FUNCTION = re.compile(r"\b(?:log|ln|lg|exp|sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arc[a-z]{3})[\s_(]*$", re.IGNORECASE)
_VERB = re.compile(
    r"(?:^|[=:≈(\[,]|\b(?:is|are|be|was|equals?|to|of|about|exactly|around|answer|and|or|gives?|get))\s*$",
    re.I,
)
_ARITHMETIC = re.compile(r"(?<![-+*/^().\d\s√π%])[-+*/^().\d\s√πx%]*\d[-+*/^().\d\s√πx%]*$")
_SUM = re.compile(r"\s*\d[\d.\s]*(?:[-+]\s*\d[\d.\s]*)+")
_TOTAL = re.compile(
    r"(?:\bthere (?:is|are)|\bmaking|\bwe have|\bit is|=) (\d[\d.,]*)(?: [a-z]+){0,3} (?:in total|altogether|in all)\b"
    r"|\b(?:a total of|(?:so )?the total(?: number(?: of [a-z ]{1,30})?)? is) (\d[\d.,]*)(?![\d/:-])"
    r"|\btotal\s*[:=]\s*(\d[\d.,]*)(?![\d/:-]| (?:of|out)\b)"
    r"|[,;] (?:so |or )?(\d[\d.,]*)(?: [a-z]+){0,2} (?:in total|altogether|in all)\b"
    r"|\b\d+(?: [a-z]+){0,2} (?:and|plus) \d+(?: [a-z]+){0,2},? (?:makes?|gives?|equals?|totals?) "
    r"(\d[\d.,]*)(?![\d/:-])",
    re.IGNORECASE,
)
"""`3 on the left and 4 on the right, so there are 7 in total`."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SO = re.compile(r"[,;]\s*so,?\s+([^.;,\n]{1,60}?)\.?\s*$", re.IGNORECASE)
"""`1, 2, 3, so 3`"""
_FIRST_THOUGHT = re.compile(
    r"\b(?:(?:(?:at )?first|initially|originally),?\s+(?:i\s+|we\s+)?"
    r"(?:thought|believed|counted|saw|guessed|assumed|had)"
    r"|(?:i|we) (?:thought|believed|guessed|assumed))\b[^.;\n]{1,60}?\bbut\b",
    re.IGNORECASE,
)
_THEREFORE = re.compile(r"\b(?:therefore|thus|hence)\b", re.IGNORECASE)
_UNKNOWNS = frozenset("xyzXYZ")


_LAKHS = re.compile(r"(?<![\d,.])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
"""`1,50,000`, as it is written in India."""
_CONVERTED = re.compile(r"(?<=[a-z])\s*\((?:about |approximately |or |≈ ?)?[\d.,]+\s*[a-z]{1,12}\)", re.IGNORECASE)
"""`10 m (32.8 ft)`."""
_COUNTED_UP = re.compile(r"(?:^|[.:!\n])\s*1(?:\s*,\s*\d{1,3}){2,}\s*(?:\.\.\.)?[.:;]?\s")


class _NoNumber(Exception):
    """The text holds something numeric that is not one number for certain."""


def number(text: str, *, share: bool = False) -> float | None:
    """The one number in a text; None if there is none, or several that differ.

    share  the quantity asked for is a share of 1, so that `50%` is .5; otherwise it is 50
    """
    text = amounts(stated(answers.without_questions(text)[-MOST_READ:]))
    if (rest := answers.corrected(text)) != text and (value := _single(rest, share)) is not None:
        return value
    if (thought := _FIRST_THOUGHT.search(text)) and (value := _single(text[thought.end() :], share)) is not None:
        return value
    value = _single(text, share) if len(text) <= LONGEST else None
    if value is None and (said := answers.statements(answers.bare(text))):
        read = [(place, each) for place, rest in said if (each := _single(rest, share)) is not None]
        value = answers.settled(read, answers.bare(text)) if len(read) == len(said) else None
    return _concluded(answers.bare(text[-LONGEST:]), share) if value is None else value


def _concluded(text: str, share: bool) -> float | None:
    """The one total of a text, or the number of its last words where they conclude: "Therefore it is 7.", ", so 7"."""
    totals = list(_TOTAL.finditer(tidy(text)))[:2]
    if len(totals) == 1:
        return _single(next(group for group in totals[0].groups() if group), share)
    if counted := _COUNTED_UP.search(text):  # "1, 2, 3. There are 3."
        return _single(text[counted.end() :], share)
    if so := _SO.search(text):
        return _single(so[1], share)
    sentences = [each for each in _SENTENCE.split(text.strip()) if each.strip()]
    return _single(sentences[-1], share) if len(sentences) > 1 and _THEREFORE.search(sentences[-1]) else None


def is_percent(text: str) -> bool:
    return "%" in tidy(text)


def _single(text: str, share: bool) -> float | None:
    text = tidy(text)
    if re.fullmatch(r"-?\s*[\d.]*\s*e(?:\^\(?[-\d.]+\)?)?", text):  # the constant, alone
        text = text.replace("e", "\N{SCRIPT SMALL E}")
    text = _CONVERTED.sub("", _LAKHS.sub(lambda m: m[0].replace(",", ""), text))
    if (chain := text.rsplit("=", 1)) and text.count("=") > 1 and _ARITHMETIC.fullmatch(chain[1].strip(" .")):
        return _single(chain[1], share)  # "x = 24/2 = 12"
    left, equals, right = text.partition("=")
    sum_ = _ARITHMETIC.search(left) if equals and "=" not in right else None
    if equals and _SUM.fullmatch(right) and _single(left, share) is not None:
        text = left  # "5 = 2 + 3"
    elif (
        sum_ and not re.search(r"\d", left[: sum_.start()]) and not re.search(r"[^\W\d_]\($", left[: sum_.start() + 1])
    ):
        text = left[: sum_.start()] + right  # "2 + 3 = 5"
    try:
        values = {value for group in _groups(text) if (value := _value(group, text, share)) is not None}
    except _NoNumber:
        return None
    return values.pop() if len(values) == 1 else None


@dataclass(frozen=True)
class _Group:
    """Neighbouring numeric tokens, and where they stand in the text."""

    tokens: tuple[str, ...]
    start: int
    end: int


def _groups(text: str) -> list[_Group]:
    groups: list[_Group] = []
    held: list[re.Match] = []
    for match in [*_TOKEN.finditer(text), None]:
        kind = match.lastgroup if match else None
        restated = (
            match
            and match[0] == "("
            and len(held) > 1
            and held[-1].lastgroup == "space"
            and held[-2].lastgroup == "number"
        )
        if match and not restated and (kind in ("number", "constant", "operator") or (kind == "space" and held)):
            held.append(match)
            continue
        while held and held[-1].lastgroup == "space":
            held.pop()
        if any(each.lastgroup in ("number", "constant") for each in held):
            tokens = tuple(each[0] for each in held)
            groups.append(_Group(tokens, held[0].start(), held[-1].end()))
        held = [match] if match and restated else []
    return groups


def _value(group: _Group, text: str, share: bool) -> float | None:
    """The number a group is; None for one that does not count; raises _NoNumber for one that spoils the answer."""
    tokens, after = list(group.tokens), text[group.end : group.end + NEAR]
    before = (
        text[: group.start]
        if group.start <= NEAR
        else "\N{HORIZONTAL ELLIPSIS}" + text[group.start - NEAR : group.start]
    )
    while tokens and (tokens[0].isspace() or tokens[0] in "*/^%"):  # bullets, and the power of a unit
        if tokens[0] == "^":
            if before[-1:] in _UNKNOWNS and not before[-2:-1].isalpha():
                raise _NoNumber
            return None
        tokens.pop(0)
    tokens, after = _without_tail(tokens, after)
    tokens = _unwrapped(tokens)
    if not any(c.isdigit() or c in CONSTANTS for token in tokens for c in token):
        return None
    if tokens[0][0].isdigit() and _IDENTIFIER.search(before):
        return None if before[-1:].isalpha() or before[-1:] in "-_" else _fail()
    if tokens[0] in ("-", "+") and before[-1:].isalpha():
        return None  # COVID-19
    if len(tokens) > 1 and tokens[0] in ("-", "+") and tokens[1].isspace() and not _VERB.search(before):
        raise _NoNumber  # "x - 5"; "the answer - 5"
    if _DENIED.match(after) or _NEGATED.search(before):
        return None
    if (
        _BOUND.search(before)
        or _FUNCTION.search(before)
        or _SPOILED_AFTER.match(after)
        or re.search(r"\d:\s*$", before)
    ):
        raise _NoNumber
    if any(token in CONSTANTS for token in tokens) and re.match(r"\s*[A-Za-z]\b", after):
        raise _NoNumber  # "2π r"
    value = _Reader([token for token in _mixed(tokens) if not token.isspace()], share).read()
    if not math.isfinite(value):
        raise _NoNumber
    return value


def _fail() -> float:
    raise _NoNumber


def _without_tail(tokens: list[str], after: str) -> tuple[list[str], str]:
    """Hyphens and slashes that belong to a unit ("5-year", "60 /h") or to the sentence ("5 - because") taken off."""
    while tokens and (tokens[-1].isspace() or tokens[-1] in ("-", "/", "*", "+", "(")):
        last = tokens.pop()
        if last == "+" or (last == "*" and after.strip()):
            raise _NoNumber
    while tokens.count("(") < tokens.count(")") and tokens and tokens[-1] == ")":
        tokens.pop()
    return tokens, after


def _unwrapped(tokens: list[str]) -> list[str]:
    """A bracket that opens here and closes elsewhere taken off."""
    while tokens.count("(") > tokens.count(")") and tokens[0] == "(":
        tokens = tokens[1:]
    return tokens


def _mixed(tokens: list[str]) -> list[str]:
    """`1 1/2` as `1+1/2` in brackets: two numbers side by side are a mixed fraction or nothing."""
    made: list[str] = []
    i = 0
    while i < len(tokens):
        part = [t for t in tokens[i : i + 8] if not t.isspace()]
        spaced = i + 1 < len(tokens) and tokens[i + 1].isspace()
        whole = spaced and len(part) >= 4 and part[2] == "/" and all(part[j].isdigit() for j in (0, 1, 3))
        if whole and int(part[1]) < int(part[3]):
            made += ["(", part[0], "+", part[1], "/", part[3], ")"]
            seen = 0
            while seen < 4:
                seen += not tokens[i].isspace()
                i += 1
            continue
        made.append(tokens[i])
        i += 1
    return made


class _Reader:
    """Recursive descent over the tokens of one quantity: sign, product, power, root, brackets, percent."""

    def __init__(self, tokens: list[str], share: bool):
        self.tokens, self.share, self.at, self.depth = tokens, share, 0, 0

    def read(self) -> float:
        try:
            value = self.signed()
            if self.peek() == "%":
                self.at += 1
                value = value / 100 if self.share else value
        except (ValueError, OverflowError, ZeroDivisionError, RecursionError):
            raise _NoNumber from None
        if self.at != len(self.tokens):
            raise _NoNumber
        return value

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def signed(self) -> float:
        if self.peek() in ("-", "+"):
            return -self.product() if self.take() == "-" else self.product()
        return self.product()

    def product(self) -> float:
        value, simple, divided = *self.factor(), False
        while (sign := self.peek()) and sign not in (")", "%", "-", "+"):
            if sign in ("*", "/"):
                self.at += 1
            elif sign.isdigit() or sign[0] in "0123456789.":
                raise _NoNumber  # two numbers side by side
            negative = sign in ("*", "/") and self.peek() == "-" and bool(self.take())
            right, plain = self.factor()
            if (sign == "*" and simple and plain) or (sign == "/" and divided):
                raise _NoNumber  # "3 * 4" is a size, "1/2/3" a date
            right = -right if negative else right
            value = value / right if sign == "/" else value * right
            divided, simple = divided or sign == "/", False
        return value

    def factor(self) -> tuple[float, bool]:
        """(value, whether it is a numeral and nothing more)."""
        base, simple = self.base()
        if self.peek() != "^":
            return base, simple
        self.at += 1
        sign = -1.0 if self.peek() == "-" and self.take() else 1.0
        exponent, _ = self.base()
        if self.peek() == "^":
            raise _NoNumber
        value = base ** (sign * exponent)
        if isinstance(value, complex):
            raise _NoNumber
        return value, False

    def base(self) -> tuple[float, bool]:
        self.depth += 1
        if self.depth > 100:
            raise _NoNumber
        token = self.take()
        if token == "(":
            value = self.total()
            if self.take() != ")":
                raise _NoNumber
            return value, False
        if token == "√":
            return math.sqrt(self.base()[0]), False
        if token in CONSTANTS:
            return CONSTANTS[token], False
        return _numeral(token), True

    def total(self) -> float:
        """Inside brackets only: a mixed fraction is a sum."""
        value = self.signed()
        while self.peek() == "+":
            self.at += 1
            value += self.product()
        return value


def _numeral(token: str) -> float:
    token = token.replace(" ", "")
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}", token):
        token = token.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?:[eE][-+]?\d+)?", token):
        token = token.replace(",", "")
    return float(token.replace(",", "."))
