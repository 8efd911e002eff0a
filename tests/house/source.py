"""The repository as its own tests read it."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WINGS = ("rewards", "data", "pipelines", "configs")


def repository_files() -> list[Path]:
    """Every file of the repository, symlinks and ignored files left out."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:
        pytest.skip("not run: the files of the repository are known to git only, and this is no clone")
    files = [ROOT / line for line in listing.stdout.splitlines()]
    return [f for f in files if f.is_file() and not f.is_symlink()]


def sources(*folders: str) -> list[Path]:
    """The Python files of these top-level folders."""
    return [f for f in repository_files() if f.suffix == ".py" and f.relative_to(ROOT).parts[0] in folders]


def modules() -> dict[str, Path]:
    """Every module of mmrl by its dotted name."""
    found = {}
    for file in sources("mmrl", "rewards", "data", "pipelines"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "mmrl" else ("mmrl", *parts)
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, lazy ones too, and of `import_module("...")` on a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names if not node.level)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)
