r"""Tables and formulas written down from a picture.

TEDS (Zhong et al. 2020, arXiv 1911.10683) of two tables is 1 - tree edit distance / nodes of the larger tree, where
changing a cell costs 1 if its spans differ and else the share of its text that is edited; TEDS-S leaves the text out.
Header cells are cells here, and sections of a table are no nodes, so that Markdown and LaTeX compare with HTML.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.distances import LONGEST, edits
from mmrl.rewards.registry import resolve
from mmrl.rewards.tables import table
from mmrl.rewards.tasks import UNREAD, Verdict, kind
from mmrl.rewards.trees import Node, tree_edits

MOST_NODES = 400  # of both tables together times two: beyond, comparing takes seconds
CELL_CHARACTERS = 200
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[0-9]+(?:\.[0-9]+)?|\S")
_SPACING = re.compile(
    r"(?<!\\)\\(?:(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits|nolimits|quad|qquad)(?![a-zA-Z])"
    r"|[,;:! ])"
)
_STYLED = re.compile(r"(\\(?:mathbf|mathcal|mathbb|mathfrak|boldsymbol|bm|vec|hat|bar|tilde))\s*\{\s*(\\?\w)\s*\}")
_OPERATOR = re.compile(r"\\operatorname\*?\s*\{(sin|cos|tan|log|ln|exp|max|min|det|lim|arg|sup|inf|dim|gcd)\}")
_SCRIPT = r"(?:\{[^{}]*\}|\\[a-zA-Z]+|\w)"
_PROSE = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}(?![a-zA-Z}])")
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|```(?:latex|tex)?\n(.+?)```", re.DOTALL)
MOST_WORDS = 3
"""Plain words of an answer from which on it is a sentence that holds a formula, and no formula."""
LEAST_ALIKE = 0.3
SAME = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne",
        "\\to": "\\rightarrow",        "\\lbrace": "\\{", "\\rbrace": "\\}", "\\cdots": "\\dots", "\\ldots": "\\dots",
        "\\mathrm": "\\text"}  # fmt: skip


def teds(first: Node, second: Node, *, structure: bool = False) -> float:
    """Tree edit distance similarity of two tables; `structure`: their text does not count."""

    if structure and shape(first) == shape(second):
        return 1.0

    def rename(a: Node, b: Node) -> float:
        if a.tag != b.tag or a.own != b.own:
            return 1.0
        if structure or a.tag != "td" or a.text == b.text:
            return 0.0
        one, two = a.text[:CELL_CHARACTERS], b.text[:CELL_CHARACTERS]
        return edits(one, two) / max(len(one), len(two))

    return 1 - tree_edits(first, second, rename) / max(first.size(), second.size())


def shape(found: Node) -> list[list[tuple]]:
    """The spans of every cell."""
    return [[cell.own for cell in row.children] for row in found.children]


def true_table(solution: Any) -> Node:
    """RewardError for a truth without a table, or one too large to compare."""
    found = table(solution) if isinstance(solution, str) else None
    if found is None or found.size() > MOST_NODES:
        answers.refuse(
            solution, "is no table", f"HTML, Markdown or LaTeX `tabular`, at most {MOST_NODES} rows and cells"
        )
    return found


@kind(
    "table",
    read=true_table,
    valid=lambda text: table(text) is not None,
    answer="a table in HTML, Markdown, or LaTeX `tabular`; a code fence around it does not matter",
    truth="the same, in any of the three",
    aliases=("table_recognition", "table_parsing", "table_to_html", "teds"),
)
def table_kind(answer: str, right: Node, *, structure: bool = False) -> Verdict:
    """TEDS of the answered and the true table; `structure`: TEDS-S, their rows, cells and spans alone."""
    found = table(answer)
    if found is None:
        return UNREAD
    if found.size() > max(4 * right.size(), 40):
        return Verdict(0.0, True, {"teds": 0.0, "teds_s": 0.0})
    parts = {"teds": teds(found, right), "teds_s": teds(found, right, structure=True)}
    filled = any(cell.text for row in found.children for cell in row.children)
    parts = {name: max(0.0, value) if filled else 0.0 for name, value in parts.items()}
    return Verdict(parts["teds_s" if structure else "teds"], True, parts)


def tokens(formula: str) -> list[str]:
    """The commands, numbers and signs of a formula; what changes spacing alone is left out."""
    formula = _STYLED.sub(r"\1 \2 ", _OPERATOR.sub(r"\\\1 ", formula))
    if re.search(r"\\begin\{(?:align|split|gather)", formula):
        formula = re.sub(r"(?<!\\)&", " ", formula)
    text = re.sub(
        r"\\(?:begin|end)\{(?:equation|align|aligned|split|displaymath|math|gather|gathered)\*?\}", " ", formula
    )
    text = _SPACING.sub(" ", answers.undollar(re.sub(r"^\s*```(?:latex|tex)?|```\s*$|\\[\[\]()]", " ", text)))
    text = re.sub(r"\\(?:tag\*?|label)\s*\{[^{}]*\}|\\(?:nonumber|notag)\b", " ", text)
    text = re.sub(r"\\([dt]?frac)(?:\s*(\d)\s*(\d)|\s+([a-zA-Z])\s*(\w))", r"\\\1{\2\4}{\3\5}", text)
    text = re.sub(r"\\sqrt\s*(?:(\d)|\s([a-zA-Z]))", r"\\sqrt{\1\2}", text)
    text = re.sub(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime\b))", lambda m: "'" * m[0].count("prime"), text)
    text = re.sub(rf"(\^\s*{_SCRIPT})\s*(_\s*{_SCRIPT})", r"\2\1", text)  # x^2_i is x_i^2
    text = re.sub(r"([_^])\s*\{\s*(\\[a-zA-Z]+|\w)\s*\}", r"\1\2", text)
    return [SAME.get(token, token) for token in _TOKEN.findall(text)]


def formula_in(answer: str) -> str:
    """The formula of an answer: the last between dollar signs or in a fence where words stand around it."""
    text = re.sub(r"^\s*```(?:latex|tex)?|```\s*$", " ", answer.strip())
    if len(_PROSE.findall(re.sub(r"\\(?:text|mathrm|operatorname|textbf|mbox)\s*\{[^{}]*\}", " ", text))) < MOST_WORDS:
        return text
    found = _MATHS.findall(text)
    return next(group for group in found[-1] if group) if found else ""


def says(found: list[str]) -> bool:
    """Whether there is a letter or a digit: braces and signs alone are no formula."""
    return any(c.isalnum() for token in found for c in token)


def true_formula(solution: Any) -> list[str]:
    """RewardError for a truth without anything to write."""
    found = tokens(answers.truth(solution) if not isinstance(solution, str) else solution)
    if not says(found):
        answers.refuse(solution, "is no formula", "LaTeX")
    return found


@lru_cache(maxsize=4)
def renderer_of(name: str) -> Any:
    return resolve(name).function


@kind(
    "latex",
    read=true_formula,
    valid=lambda text: says(tokens(text)),
    answer="LaTeX, with or without dollar signs or a code fence; spacing, `\\left` and `\\dfrac` do not matter",
    truth="LaTeX",
    aliases=("formula", "latex_ocr", "formula_recognition", "image_to_latex"),
)
def latex(answer: str, right: list[str], *, renderer: str | None = None) -> Verdict:
    """A formula written down: 1 - edits of its tokens over the longer; with `renderer`, half of it is how it looks.

    renderer  your function from a list of LaTeX texts to PIL images, None for what does not compile
    """
    found = tokens(formula_in(answer))[:LONGEST]
    if not says(found):
        return UNREAD
    written = 1 - edits(found, right[:LONGEST]) / max(len(found), len(right))
    parts = {"tokens": written if written >= LEAST_ALIKE else 0.0, "exact": float(found == right)}
    if renderer is None:
        return Verdict(parts["tokens"], True, parts)
    from mmrl.rewards.looks import wavelet_similarity

    pictures = renderer_of(renderer)([" ".join(found), " ".join(right)])
    if len(pictures) != 2 or pictures[1] is None:
        raise RewardError(f"renderer {renderer!r} gave no picture of the solution", "solution")
    parts["rendered"] = 0.0 if pictures[0] is None else max(0.0, wavelet_similarity(*pictures))
    return Verdict(0.5 * parts["tokens"] + 0.5 * parts["rendered"], True, parts)
