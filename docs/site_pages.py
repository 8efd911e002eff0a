"""What `make site` does besides reading this folder: an API reference from docstrings, and links that leave it.

mkdocs runs the `on_` functions (hooks in mkdocs.yml); mkdocstrings loads `Aligned`. The code is read, not imported.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

try:
    import griffe
except ImportError:  # of the extra `docs`; the link check and the lists below need none of it
    griffe = None  # type: ignore[assignment]

ROOT = Path(__file__).parents[1]
REFERENCE = {
    "pipelines": ["mmrl.pipelines.pipeline", "mmrl.pipelines.vlm", "mmrl.pipelines.video", "mmrl.pipelines.flow"],
    "record": ["mmrl.record", "mmrl.columns", "mmrl.media"],
    "stages": ["mmrl.stages", "mmrl.recipes"],
    "objective": ["mmrl.objective.objective", "mmrl.objective.computing", "mmrl.objective.config"],
    "rollout": ["mmrl.rollout.plan", "mmrl.rollout.environments.base"],
    "policies": ["mmrl.policies.base", "mmrl.policies.likelihood", "mmrl.policies.adapters", "mmrl.policies.quantized"],
    "training": ["mmrl.training.trainer", "mmrl.training.config", "mmrl.training.monitors"],
    "rewards": ["mmrl.rewards.registry", "mmrl.rewards.panel", "mmrl.rewards.tasks"],
    "data": ["mmrl.data.datasets", "mmrl.data.formats.base", "mmrl.data.video"],
    "configuration": ["mmrl.pipelines.config", "mmrl.settings", "mmrl.plugins"],
    "errors": ["mmrl.errors"],
}
"""Page of the reference: the modules on it."""
CONTRIBUTING = "contributing.md"
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
MARK = re.compile(r"(?:-|\d\.) ")
PARAMETER = re.compile(r"^(\S(?:[^\s]|,? (?! ))*)  +(\S.*)$")
"""A line of a list of parameters as docstrings here align them: names, two spaces or more, the meaning."""


def on_files(files: Any, config: Any) -> Any:
    """The pages that lie nowhere: the reference, and CONTRIBUTING.md."""
    from mkdocs.structure.files import File

    pages = {f"reference/{name}.md": reference(name) for name in REFERENCE}
    pages[CONTRIBUTING] = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return indented(inside(markdown, page.file.src_uri))


def reference(name: str) -> str:
    """A page of the reference in mkdocstrings' Markdown."""
    return "\n\n".join([f"# {name.capitalize()}", *(f"::: {module}" for module in REFERENCE[name])]) + "\n"


def inside(markdown: str, source: str) -> str:
    """The Markdown with links that leave docs/ told as paths in the repository: the site has only this folder."""

    def told(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, _, _ = target.partition("#")
        if "://" in target or not path:
            return link[0]
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), path))
        if place.startswith("docs/"):
            return link[0]
        if place == "CONTRIBUTING.md":
            return f"[{text}]({CONTRIBUTING})"
        return f"`{place}`" if text.strip("./") == place else f"{text} (`{place}`)"

    return LINK.sub(told, markdown)


def indented(markdown: str) -> str:
    """What belongs to an item of a list, four spaces in: GitHub takes the width of its mark, mkdocs does not."""
    lines: list[str] = []
    fenced, width = False, 0
    for line in markdown.splitlines():
        mark = MARK.match(line)
        if not width and line.startswith("```"):
            fenced = not fenced
        if mark and not fenced:
            width = len(mark[0])
        elif width and line and not line.startswith(" " * width):
            width = 0
            fenced = line.startswith("```")
        elif width and line:
            line = " " * (4 - width) + line
        lines.append(line)
    return "\n".join(lines) + "\n"


def listed(docstring: str) -> str:
    """Aligned parameters of a docstring as a list of Markdown; everything else as it is."""
    lines: list[str] = []
    open_item = False
    for line in docstring.splitlines():
        found = PARAMETER.match(line)
        if found and "|" not in found[1]:
            lines += [] if open_item or not lines or not lines[-1] else [""]
            lines.append(f"- `{found[1]}`: {found[2]}")
            open_item = True
        elif open_item and line.startswith("  "):
            lines.append(f"    {line.strip()}")
        else:
            lines += [""] if open_item and line else []
            lines.append(line)
            open_item = False
    return "\n".join(lines)


if griffe is not None:

    class Aligned(griffe.Extension):
        """Docstrings as mkdocstrings shows them."""

        def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
            if obj.docstring:
                obj.docstring.value = listed(obj.docstring.value)
