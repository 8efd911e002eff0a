"""Reading tables from HTML, Markdown or LaTeX `tabular` into one tree: rows, and cells with their spans and text."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser

from mmrl.rewards.distances import tidied
from mmrl.rewards.trees import Node

LONGEST = 60_000
MOST_CELLS = 2000
_TABULAR = re.compile(r"\\begin\{(tabular[xy*]?|array|longtable)\}(.*?)\\end\{\1\}", re.DOTALL)
_RULES = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|endfoot|centering|small)\b(?:\[[^\]]*\])?|"
    r"\\(?:cline|cmidrule|addlinespace|specialrule)(?:\([^)]*\))?(?:\[[^\]]*\])?(?:\{[^{}]*\})*"
)
_SPAN = re.compile(r"\\(multicolumn|multirow)\s*\{\s*(\d+|\*)\s*\}\s*(?:\{[^{}]*\}|\*)\s*")
_COMMENT = re.compile(r"(?<!\\)%[^\n]*")
_DRESSING = re.compile(r"\\(?:textbf|textit|texttt|underline|emph|mathbf|mathrm|text|textsc|bf|it|em)\b\s*")
_FENCED = re.compile(r"```\w*\n(.*?)\n?\s*```", re.DOTALL)
_DIVIDER = re.compile(r"\|?\s*:?-{1,}:?\s*(?:\|\s*:?-{1,}:?\s*)*\|?")


def table(text: str) -> Node | None:
    """The one table of a text, or the first of several; None where there is none."""
    text = text[:LONGEST]
    found = None
    if re.search(r"<t[rd]\b", text, re.IGNORECASE):
        found = _from_html(text)
    elif match := _TABULAR.search(text):
        found = _from_latex(match[1], match[2])
    else:
        found = _from_markdown(text)
    return (
        found if found and found.children and sum(len(row.children) for row in found.children) <= MOST_CELLS else None
    )


class _Reader(HTMLParser):
    """Rows and cells wherever they stand; other tags only dress the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root, self.tables = Node("table"), 0
        self.open: Node | None = None

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "table":
            self.tables += 1
        if self.tables > 1:
            return
        if tag == "tr":
            self.root.children.append(Node("tr"))
            self.open = None
        elif tag in ("td", "th"):
            if not self.root.children:
                self.root.children.append(Node("tr"))
            named = dict(attrs)
            self.open = Node("td", (_whole(named.get("colspan")), _whole(named.get("rowspan"))))
            self.root.children[-1].children.append(self.open)
        elif tag == "br" and self.open:
            self.open.text += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr", "table"):
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.open.text += data


def _whole(value: str | None) -> int:
    return int(value) if value and value.strip().isdigit() else 1


def _from_html(text: str) -> Node:
    reader = _Reader()
    reader.feed(text)
    return _cleaned(reader.root)


def _cleaned(root: Node) -> Node:
    for row in root.children:
        for cell in row.children:
            cell.text = tidied(cell.text, fold=False)
    root.children = [row for row in root.children if row.children]
    return root


def _from_markdown(text: str) -> Node | None:
    lines = [line.strip() for line in text.splitlines()]
    at = next((i for i, line in enumerate(lines) if "|" in line and "-" in line and _DIVIDER.fullmatch(line)), None)
    if at is None:
        return _undivided(lines)
    if at == 0 or "|" not in lines[at - 1]:
        return None
    rows = [lines[at - 1]]
    for line in lines[at + 1 :]:
        if "|" not in line:
            break
        rows.append(line)
    return _cleaned(Node("table", children=[_row(re.split(r"(?<!\\)\|", row.strip().strip("|"))) for row in rows]))


def _undivided(lines: list[str]) -> Node | None:
    """Two lines or more from bar to bar, with as many cells each: a Markdown table without its divider."""
    rows = [line.strip("|").split("|") for line in lines if len(line) > 2 and line[0] == line[-1] == "|"]
    even = len(rows) > 1 and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    return _cleaned(Node("table", children=[_row(row) for row in rows])) if even else None


def grid(text: str) -> list[list[str]]:
    """The cells of a text that is a table and no more: in Markdown, or lines parted by tabs or commas; [] for none."""
    text = text[:LONGEST].strip()
    fenced = _FENCED.fullmatch(text)
    lines = [line.strip() for line in (fenced[1] if fenced else text).splitlines() if line.strip()]
    if len(lines) < 2 or len(lines) > MOST_CELLS:
        return []
    if all("|" in line for line in lines):
        found = _from_markdown("\n".join(lines))
        parted = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
        rows = [[cell.text for cell in row.children] for row in found.children] if found else parted
    else:
        comma = "\t" if all("\t" in line for line in lines) else ","
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=comma, skipinitialspace=True)]
    return rows if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 else []


def _row(cells: list[str]) -> Node:
    plain = (re.sub(r"\*\*|__|(?<!\w)`|`(?!\w)", "", cell.replace("\\|", "|")) for cell in cells)
    return Node("tr", children=[Node("td", (1, 1), cell) for cell in plain])


def _from_latex(name: str, body: str) -> Node:
    body = _RULES.sub(" ", _COMMENT.sub("", _without_columns(name, body)))
    rows = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?|\\tabularnewline\b", body):
        cells = [_latex_cell(each) for each in re.split(r"(?<!\\)&", line)]
        if len(cells) > 1 or cells[0].text.strip():
            rows.append(Node("tr", children=cells))
    return _cleaned(Node("table", children=rows))


def _without_columns(name: str, body: str) -> str:
    """The arguments before the first cell taken off: `[t]`, `{\textwidth}`, `{l|cc@{}}`."""
    for _ in range(2 if name in ("tabularx", "tabulary", "tabular*") else 1):
        body = re.sub(r"^\s*\[[^\]]*\]", "", body)
        if not body.lstrip().startswith("{"):
            break
        body, depth = body.lstrip(), 0
        for i, character in enumerate(body):
            depth += (character == "{") - (character == "}")
            if not depth:
                body = body[i + 1 :]
                break
    return body


def _latex_cell(text: str) -> Node:
    columns = rows = 1
    while match := _SPAN.match(text.strip()):
        span = 1 if match[2] == "*" else int(match[2])
        columns, rows = (span, rows) if match[1] == "multicolumn" else (columns, span)
        text = text.strip()[match.end() :].strip()
        text = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    for _ in range(3):
        text = _DRESSING.sub("", text)
    text = re.sub(r"\\([%&_#$])", r"\1", text)
    return Node("td", (columns, rows), re.sub(r"[{}~]", " ", text).replace("$", ""))
