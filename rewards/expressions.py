r"""Mathematics: whether an answer and the truth are the same expression, by math-verify: `1/2` and `\frac{2}{4}` are.

What math-verify alone gets wrong is settled before it is asked: words are compared as words ("lube" is a product of
the letters of "blue"), a tuple keeps its order, "6 = 5" is not 5, and powers that no computer can write out are not
computed. An answer must be tagged or boxed: the whole text is never searched.
"""

from __future__ import annotations

import logging
import math
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmrl.rewards import answers, dressing, real_sets, units
from mmrl.rewards.numbers import number
from mmrl.rewards.options import Options, label_in
from mmrl.rewards.registry import checks, reward
from mmrl.rewards.spelled import DASHES

SECONDS = 3  # of computing that one comparison may take in a main thread; elsewhere only the worker's own limit holds
MOST_DIGITS = 4000  # of a power or factorial that is written out
LONGEST = 2000  # characters of an expression
MOST_TERMS = 60  # power of a bracket that is expanded
_KNOWN = frozenset((
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
    "lg", "exp", "sqrt", "frac", "dfrac", "tfrac", "pi", "min", "max", "gcd", "lcm", "mod", "det", "dim", "inf",
    "lim", "sup", "deg", "cm", "mm", "km", "kg", "dm", "ml", "infty", "alpha", "beta", "gamma", "theta", "phi",
    "lambda", "sigma", "omega", "delta",
))  # fmt: skip
_POWER = re.compile(
    r"([\d.]+|[A-Za-z]"
    r"|[)}\]])\s*\^\s*(?:\{\s*\(?\s*(-?[\d.]+)\s*\)?\s*\}|\(\s*(-?[\d.]+)\s*\)|(-?\d+(?:\.\d+)?))"
)
_FACTORIAL = re.compile(r"(\d+)\s*\)?\s*!|\\binom\s*\{?\s*(\d+)")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\s*\(\s*[A-Za-z]\s*\))?")
_MIXED = re.compile(r"(?<![\w./^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w./])")
_SHORT_WORDS = frozenset(
    ("no", "on", "up", "in", "go", "ok", "us", "it", "he", "me", "to", "of", "so", "or", "is", "if")
)
_JOINED = re.compile(r"\s*(?:\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b)\s*")
_LETTER = re.compile(r"\(?\s*([A-Z])\s*\)?[.:]?")


class _TimeUp(BaseException):
    """Not an Exception: math-verify swallows those."""


def true_expression(solution: Any) -> str:
    """RewardError for a truth that holds no expression."""
    if isinstance(solution, bool):
        answers.refuse(solution, "is yes or no", "an expression, or the task `boolean`")
    return answers.truth(solution)


def mathematics(completion: str, solution: Any) -> float:
    """1 if answer and truth are the same expression, else 0. TimeoutError when that takes too long to find out."""
    right = true_expression(solution)
    answer = answers.corrected(dressing.narrow(answers.extract(completion, whole=False)))
    if not answer:
        return 0.0
    same = _same_set(answer, right)
    return float(same_expression(_clean(answer), _clean(right)) if same is None else same)


def _same_set(answer: str, right: str) -> bool | None:
    """Of two sets of reals, one of them at least in relations or pieces; None for anything else."""
    said, wanted = ((None if len(text) > LONGEST else real_sets.read(text)) for text in (answer, right))
    if said is None or wanted is None or not (said.told or wanted.told):
        return None
    if said.variable and wanted.variable and said.variable != wanted.variable:
        return None
    return real_sets.same(said, wanted, same_expression)


def _clean(text: str) -> str:
    text = re.sub(r"(?<!\\)\*\*", "^", answers.undollar(text).translate(DASHES).replace("±", r"\pm "))
    text = re.sub(r"\\varnothing(?![a-zA-Z])", r"\\emptyset", text)
    text = re.sub(r"\\(begin|end)\{[bB]matrix\}", r"\\\1{pmatrix}", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)(?![\d.])", r" \\cdot 10^{\1}", text)
    if not is_wordy(listed := _JOINED.sub(", ", text)):
        text = listed
    return text.strip().rstrip(".")


def same_expression(answer: str, right: str) -> bool:
    r"""Whether two texts of LaTeX, without `$`, are equal as words, letters, numbers or expressions."""
    words, true_words = _worded(answer), _worded(right)
    if _spaceless(answer) == _spaceless(right):
        return True
    if true_words and is_wordy(right) and is_wordy(answer):
        return words == true_words
    if all(re.fullmatch("[a-z]{2}", each) for each in (words, true_words)) and {words, true_words} & _SHORT_WORDS:
        return words == true_words
    if units.differ(answer, right, variables=True):
        return False
    if (r"\pm" in answer) != (r"\pm" in right):
        answer, right = _both_signs(answer), _both_signs(right)
    letter = _LETTER.fullmatch(true_words.upper()) if len(right) <= 12 and re.search("[A-Z]", right) else None
    if letter and (chosen := _LETTER.fullmatch(answers.bare(answer).strip())):
        return chosen[1] == letter[1]
    if letter and (stated := label_in(answers.bare(answer), Options())) and stated[1]:
        return stated[0] == letter[1]  # "A. 5"
    if is_wordy(answer) or is_wordy(right):
        value = number(right)
        if value is not None:
            said = number(answer)
            return said is not None and math.isclose(said, value, rel_tol=1e-9)
        if is_wordy(right):
            return False
        answer = _without_words(answer)
        if not answer or is_wordy(answer):
            return False
    if is_costly(answer) or is_costly(right):
        return False
    with _time_limit():
        return _equal(answer, right)


def _both_signs(text: str) -> str:
    r"""`\pm 2` as `2, -2`, where one sign is left open."""
    head, sign, tail = re.sub(r"^[A-Za-z]\s*=\s*", "", text.strip()).partition(r"\pm")
    if not sign or r"\pm" in tail or "," in text:
        return text
    return f"{head}{'+' if head.strip() else ''}{tail}, {head}-{tail}"


def _worded(text: str) -> str:
    return answers.plain(answers.bare(re.sub(r"\\[,;:! ]|~|[{}]", " ", answers.bare(text))))


def _spaceless(text: str) -> str:
    return re.sub(r"\s+|(?<!\\)\\[,;:! ]|\\left|\\right", "", text)


def is_wordy(text: str) -> bool:
    """Whether a text is language, not algebra: it holds a run of three letters that is no function's name."""
    text = re.sub(r"\\[A-Za-z]+", " ", answers.bare(text))
    return any(run.lower() not in _KNOWN for run in re.findall(r"[^\W\d_]{3,}", text))


def _without_words(text: str) -> str:
    """The expression of a sentence: what it states as the answer, its only `$...$`, or all but the unit at its end."""
    text = answers.without_questions(text)
    if re.search(r"\bnot\b|n't\b|\bnever\b", text):
        return ""
    if said := answers.statements(text):
        text = said[-1][1] if len(said) == 1 else ""
    if inside := set(re.findall(r"\$([^$]+)\$", text)):
        return inside.pop().strip() if len(inside) == 1 else ""
    return re.sub(r"\s*(?:\\text\s*\{[^{}]*\}|\b[a-z]{3,}(?: [a-z]+)*)\.?\s*$", "", text).strip()


def is_costly(text: str) -> bool:
    """Whether computing with an expression may take seconds: towers of powers, large factorials, long texts."""
    if len(text) > LONGEST:
        return True
    if any(int((m[1] or m[2])[:9]) > 1500 for m in _FACTORIAL.finditer(text)):
        return True
    for _ in range(100):
        found = list(_POWER.finditer(text))
        if not found:
            return False
        match = found[-1]
        base, power = match[1], float(_digits(match[2] or match[3] or match[4]))
        if base[0].isdigit() or base[0] == ".":
            value = float(_digits(base))
            if value > 0 and abs(power) * abs(math.log10(value)) > MOST_DIGITS:
                return True
            text = text[: match.start()] + _small_power(value, power) + text[match.end() :]
        elif abs(power) > (MOST_TERMS if base in ")}]" else MOST_DIGITS):
            return True
        else:
            text = text[: match.start()] + base + text[match.end() :]
    return True


def _digits(text: str) -> str:
    return text if re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)", text) else "0"


def _small_power(base: float, power: float) -> str:
    """The value, for the power it may stand in; what is beyond a float stands for "too large"."""
    try:
        value = base**power
    except (OverflowError, ZeroDivisionError):
        return "9" * 30
    return f"{value:.6f}" if isinstance(value, float) and abs(value) < 1e30 else "9" * 30


def _equal(answer: str, right: str) -> bool:
    if "=" in answer and "=" not in right and "," not in answer:
        *names, answer = (part.strip() for part in answer.split("="))
        if not all(_NAME.fullmatch(name) or _verify(name, right) for name in names):
            return False
    bare, bracketed = [bool(_items(text)) for text in (answer, right)], [bool(_tuple(t)) for t in (answer, right)]
    if bare[0] and bracketed[1]:
        return _verify(f"({answer})", right)
    if bracketed[0] and bare[1]:
        return _verify(answer, f"({right})")
    if bracketed[0] and bracketed[1]:
        first, second = _tuple(answer), _tuple(right)
        return len(first) == len(second) and all(_verify(a, b) for a, b in zip(first, second, strict=True))
    if bool(bare[0]) != bool(bare[1]) and not any("{" in t for t in (answer, right)):
        return False  # "5, 5" for 5
    return _verify(answer, right)


def _items(text: str) -> list[str]:
    """The parts of a list at its outermost commas; [] for what is no list."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not re.match(r",\d{3}(?!\d)", text[i:]):
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if parts else []


def _tuple(text: str) -> list[str]:
    """The entries of `(a, b)`; [] for anything else."""
    text = re.sub(r"\\left|\\right|\\bigl?|\\bigr?", "", text).strip()
    return _items(text[1:-1]) if text.startswith("(") and text.endswith(")") else []


def _verify(answer: str, right: str) -> bool:
    from math_verify import parse, verify

    for name in ("math_verify", "math_verify.utils", "math_verify.grader", "math_verify.parser"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns on every call without its own limit
    gold = parse(f"${right}$", parsing_timeout=None)
    predicted = parse(f"${answer}$", parsing_timeout=None)
    if not gold or not predicted:
        return _worded(answer) == _worded(right)
    return bool(verify(gold, predicted, timeout_seconds=None))


@contextmanager
def _time_limit() -> Iterator[None]:
    """TimeoutError after SECONDS of computing, where a timer can be set: in the main thread, as in a reward worker."""
    import math_verify  # noqa: F401  (its import is not part of the comparison)

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGVTALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except _TimeUp:
        raise TimeoutError(f"comparing two expressions took more than {SECONDS} s") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, outer)
        signal.signal(signal.SIGVTALRM, before)


@reward("math", success=True, check=checks(true_expression))
def math_reward(completions, solution) -> list[float]:
    """1 if the tagged or boxed answer and the truth are the same expression, by math-verify."""
    return [mathematics(c, s) for c, s in zip(completions, solution, strict=True)]
