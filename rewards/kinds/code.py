"""Code written after a picture, judged by its structure; nothing of it is ever run.

code_json    F1 of (path, value) over all leaves: what is missing and what is too much cost alike
code_html    .7 share of the truth's tags + .3 ratio of the lengths (EasyVideoR1); `code_svg` needs <svg> and </svg>
code_python  parses, then the share of the truth's functions, classes and imports that are there; of a truth
             that defines nothing, of its imports and calls
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.distances import overlap_f1
from mmrl.rewards.tasks import UNREAD, Verdict, kind

LONGEST = 50_000
MOST = 5000
MOST_EXACT = 2**53  # below it 1 and 1.0 are the same number
_FENCE = re.compile(r"```[\w+-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_PRELUDE = re.compile(r"<!DOCTYPE[^>]*>|<\?xml[^>]*>|<!--.*?-->|(?<=>)\s+(?=<)", re.IGNORECASE | re.DOTALL)
"""What no page is judged by: its type, comments, and how it is indented."""
_SVG = re.compile(r"<svg\b.*</svg>", re.IGNORECASE | re.DOTALL)
VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"])


def unfenced(text: str) -> str:
    """What stands in the last code fence, else the whole text."""
    found = _FENCE.findall(text[:LONGEST])
    return (found[-1] if found else text[:LONGEST]).strip()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every leaf of parsed JSON; an empty list or mapping is a leaf."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for i, each in enumerate(value):
            yield from leaves(each, f"{path}/{i}")
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield path, json.dumps(round(float(value), 6) if number and abs(value) < MOST_EXACT else value)


def true_json(solution: Any) -> list[tuple[str, str]]:
    """RewardError for a truth that is no JSON object or list, or an empty one."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    if not isinstance(value, dict | list) or not value:
        answers.refuse(solution, "is no JSON", "an object or a list with something in it")
    return list(leaves(value))[:MOST]


@kind(
    "code_json",
    read=true_json,
    valid=lambda text: answers.json_value(text) is not None,
    answer="JSON, also in a code fence",
    truth="JSON, as text or structure",
    aliases=("json", "json_structure", "structured_extraction"),
)
def code_json(answer: str, right: list[tuple[str, str]]) -> Verdict:
    """JSON: F1 of its leaves, path and value, against the truth's; `paths` compares the paths alone."""
    value = answers.json_value(answer)
    if not isinstance(value, dict | list) or not value:
        return UNREAD
    found = list(leaves(value))[:MOST]
    paths = overlap_f1([path for path, _ in found], [path for path, _ in right])
    return Verdict(overlap_f1(found, right), True, {"paths": paths})


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.opened[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.closed[tag] += 1

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.opened[tag] += 1
        self.closed[tag] += 1


def tags(text: str) -> _Tags:
    reader = _Tags()
    reader.feed(text)
    return reader


def true_markup(solution: Any) -> str:
    """RewardError for a truth without tags."""
    text = unfenced(solution) if isinstance(solution, str) else ""
    if not tags(text).opened:
        answers.refuse(solution, "has no tags", "HTML or SVG")
    return text


def markup(answer: str, right: str, needed: str | None) -> Verdict:
    """Share of the truth's tags, how closed they are, and how long the text is beside the truth."""
    text, right = (_PRELUDE.sub("", each).strip() for each in (unfenced(answer), right))
    found, wanted = tags(text), tags(right)
    if not found.opened or (needed and not (found.opened[needed] and found.closed[needed])):
        return UNREAD
    shared = sum((found.opened & wanted.opened).values())
    surplus = max(sum(found.opened.values()), sum(wanted.opened.values()))
    open_tags = {t: n for t, n in found.opened.items() if t not in VOID}
    closed = sum(min(n, found.closed[t]) for t, n in open_tags.items()) / max(1, sum(open_tags.values()))
    if not shared:
        return Verdict(0.0, True, {"tags": 0.0, "length": 0.0, "closed": closed})
    length = min(len(text), len(right)) / max(len(text), len(right), 1)
    kinds = sum(t in found.opened for t in wanted.opened) / len(wanted.opened)
    share = kinds * shared / surplus if surplus > 4 * sum(wanted.opened.values()) else kinds
    return Verdict(0.7 * share + 0.3 * length, True, {"tags": share, "length": length, "closed": closed})


@kind(
    "code_html",
    read=true_markup,
    valid=lambda text: bool(tags(unfenced(text)).opened),
    answer="HTML, also in a code fence",
    truth="HTML",
    aliases=("html", "html_structure", "screenshot_to_code", "web_to_code", "image_to_html"),
)
def code_html(answer: str, right: str) -> Verdict:
    """HTML: .7 share of the truth's tags + .3 ratio of the lengths; four times as many tags as asked are padding."""
    return markup(answer, right, None)


@kind(
    "code_svg",
    read=true_markup,
    valid=lambda text: bool(tags(unfenced(text)).opened["svg"]),
    answer="SVG with `<svg>` and `</svg>`, also in a code fence",
    truth="SVG",
    aliases=("svg", "svg_structure", "image_to_svg"),
)
def code_svg(answer: str, right: str) -> Verdict:
    """SVG, as `code_html`; 0 without `<svg>` and `</svg>`."""
    picture = _SVG.search(unfenced(answer))
    return markup(picture[0] if picture else answer, right, "svg")


def parsed(text: str) -> ast.Module | None:
    """The syntax tree of Python; None where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def names(tree: ast.Module) -> list[str]:
    """What a module defines and imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found += [alias.name for alias in node.names]
    return sorted(set(found))


def modules(tree: ast.Module) -> list[str]:
    """What `from a import b` imports as `import a.b` names it."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]


def script(text: str) -> str:
    """The Python of an answer: all its fences where they parse as one, else the last, or the whole text."""
    fences = _FENCE.findall(text[:LONGEST])
    whole = "\n".join(fences)
    return whole if len(fences) > 1 and parsed(whole) else unfenced(text)


def wanted_of(tree: ast.Module) -> list[str]:
    """What a truth defines and imports; of a script without definitions, what it calls, too."""
    defines = any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree))
    return names(tree) if defines else sorted({*names(tree), *calls(tree)})


def calls(tree: ast.Module) -> list[str]:
    """The functions a module calls, by their last name: what a script without definitions has."""
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sorted({getattr(f, "attr", getattr(f, "id", "")) for f in called} - {""})


def true_python(solution: Any) -> list[str]:
    """RewardError for a truth that does not parse, or names nothing."""
    tree = parsed(unfenced(solution)) if isinstance(solution, str) else None
    wanted = wanted_of(tree) if tree else []
    if not wanted:
        answers.refuse(solution, "is no Python", "code that parses, and defines, imports or calls something")
    return wanted


@kind(
    "code_python",
    read=true_python,
    valid=lambda text: bool((tree := parsed(unfenced(text))) and tree.body),
    answer="Python, also in a code fence; it is parsed and never run",
    truth="Python",
    aliases=("python", "code", "chart_to_code", "plot_to_code", "python_code"),
)
def code_python(answer: str, right: list[str]) -> Verdict:
    """Python: the share of the truth's functions, classes and imports it names, and a script's calls (EasyVideoR1)."""
    tree = parsed(script(answer))
    if tree is None or not tree.body:
        return UNREAD
    found = {*names(tree), *modules(tree), *calls(tree)}
    return Verdict(sum(name in found for name in right) / len(right), True, {"compiles": 1.0})
