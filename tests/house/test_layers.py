"""The shape of the house, read from the source: which folder may import which, and what no file may hold."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.source import ROOT, imported, repository_files, sources

MAY_IMPORT = {
    "mmrl": {"core"},
    "rewards": {"core", "rewards"},
    "data": {"core", "data"},
    "pipelines": {"core", "rewards", "data", "pipelines"},
}
FACADE = {"mmrl/__init__.py", "mmrl/__main__.py"}
LONGEST_FILE = 600
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".ipynb", ".txt", ".cfg", ".html", ".j2", ".css", ".js", ""}


def wing(module: str) -> str | None:
    """ "core", or the wing a dotted name belongs to; None outside mmrl."""
    first, _, rest = module.partition(".")
    if first != "mmrl":
        return None
    second = rest.partition(".")[0]
    return second if second in MAY_IMPORT else "core"


def breaches(text: str, folder: str) -> list[str]:
    found = []
    for module in imported(ast.parse(text)):
        if module.startswith(".") or module.partition(".")[0] in ("rewards", "data", "pipelines", "configs"):
            found.append(f"imports {module!r}: write the absolute name, mmrl....")
        elif (target := wing(module)) and target not in MAY_IMPORT[folder]:
            found.append(f"imports {module!r}, but {folder} may import only {sorted(MAY_IMPORT[folder])}")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder):
    found = {}
    for file in sources(folder):
        name = file.relative_to(ROOT).as_posix()
        if name not in FACADE and (lines := breaches(file.read_text(), folder)):
            found[name] = lines
    assert not found


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("mmrl", "from mmrl.rewards import panel"),
        ("mmrl", "def f():\n    from mmrl import data"),
        ("mmrl", "import importlib\nimportlib.import_module('mmrl.pipelines.cli')"),
        ("rewards", "import mmrl.data.video"),
        ("data", "from rewards.text import exact"),
        ("pipelines", "from .config import read"),
    ],
)
def test_a_wrong_import_is_seen(folder, line):
    assert breaches(line, folder)


@pytest.mark.parametrize(
    ("folder", "line"),
    [("mmrl", "from mmrl.record import Batch"), ("rewards", "import torch"), ("pipelines", "import mmrl.data.cache")],
)
def test_a_right_import_passes(folder, line):
    assert not breaches(line, folder)


def test_the_facade_reaches_the_wings_only_when_asked():
    """At module level the facade imports the core alone."""
    for name in FACADE:
        for node in ast.parse((ROOT / name).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert {wing(m) for m in imported(node)} <= {None, "core"}, name


def test_no_file_is_too_long():
    files = sources(*MAY_IMPORT, "tests", "benchmarks", "docs")
    long = {f.relative_to(ROOT).as_posix(): n for f in files if (n := len(f.read_text().splitlines())) > LONGEST_FILE}
    assert not long


def test_nothing_unsafe_is_called():
    """No pickle, no `eval`, no unsafe YAML or torch file."""
    found = []
    for file in sources(*MAY_IMPORT):
        tree = ast.parse(file.read_text())
        found += [(file.name, m) for m in imported(tree) if m.partition(".")[0] in ("pickle", "dill", "shelve")]
        found += [(file.name, name) for name in unsafe_calls(tree)]
    assert not found


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load", "torch.save", "os.system"):
                yield name


def test_an_unsafe_call_is_seen():
    assert list(unsafe_calls(ast.parse("yaml.load(text); model.eval(); torch.load('x')"))) == [
        "yaml.load",
        "torch.load",
    ]


def private_places() -> re.Pattern:
    """Absolute paths of somebody's machine, and addresses of package registries."""
    folders = "|".join(("root", "work", "home", "Users", "mnt", "tmp"))
    hosts = "|".join(("pypi[.]org/simple", "python[h]osted", "deb[.]debian", "registry[.]npmjs"))
    return re.compile(rf"(?<![\w.*])/({folders})/\w|{hosts}")


def test_no_file_names_a_machine():
    found = []
    for file in repository_files():
        if file.suffix in TEXT:
            for number, line in enumerate(file.read_text(errors="ignore").splitlines(), 1):
                if private_places().search(line):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


@pytest.mark.parametrize("path", ["/" + "home/me/clip.mp4", "file = '/" + "work/x'", "/" + "Users/ann"])
def test_a_machine_path_is_seen(path):
    assert private_places().search(path)


@pytest.mark.parametrize("text", ["runs/demo", "docs/work/notes", "../data/home/x.png", "reads/writes and work/rest"])
def test_a_relative_path_is_not(text):
    assert not private_places().search(text)
