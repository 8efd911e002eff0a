"""The shape of the house, read from the source: which folder may import which, and what no file may hold."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.source import ROOT, imported, modules, repository_files, sources

MAY_IMPORT = {
    "mmrl": {"core"},
    "rewards": {"core", "rewards"},
    "data": {"core", "data"},
    "pipelines": {"core", "rewards", "data", "pipelines"},
}
FACADE = {"mmrl/__init__.py", "mmrl/__main__.py"}
LONGEST_FILE, LONGEST_TEST = 500, 600
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


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, at whatever distance."""
    behind = {module: _reached(graph, module) for module in graph}
    found = {tuple(sorted(m for m in behind[n] if n in behind[m])) for n in graph if n in behind[n]}
    return sorted(map(list, found))


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def test_no_room_holds_an_import_circle():
    """Imports inside functions and for types count too. The facade, `mmrl` itself, is in nobody's way."""
    known = modules()
    graph = {name: set(imported(ast.parse(file.read_text()))) & known.keys() for name, file in known.items()}
    graph = {name: reached - {name, "mmrl"} for name, reached in graph.items()}
    assert not [group for group in circles(graph) if not all(m.startswith("mmrl.data") for m in group)]


def test_a_circle_is_seen_at_any_distance():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


POLICY_ROOMS = {"language", "language/families", "language/fast", "language/probes", "language/engines"} | {
    "language/likelihoods",
    "generation", "generation/families", "generation/likelihoods", "masked", "joint", "pictures", "scales",
}  # fmt: skip
SHARED_BY_POLICIES = {
    "__init__", "base", "registry", "views", "adapters", "anchor", "counts", "fixed_length", "images", "likelihood",
    "quantized", "sharding", "weight_average",
}  # fmt: skip


def test_policies_keep_to_their_rooms():
    """At the top stands only what several rooms share, and it imports none of them."""
    rooms: dict[str, set[str]] = {}
    for file in sources("mmrl"):
        place = file.relative_to(ROOT).as_posix()
        if place.startswith("mmrl/policies/"):
            folder, _, name = place.removeprefix("mmrl/policies/").rpartition("/")
            rooms.setdefault(folder, set()).add(name.removesuffix(".py"))
    assert rooms.pop("") == SHARED_BY_POLICIES
    assert rooms.keys() <= POLICY_ROOMS
    closed = tuple(f"mmrl.policies.{room}" for room in rooms if "/" not in room)
    for name in SHARED_BY_POLICIES:
        reached = imported(ast.parse((ROOT / f"mmrl/policies/{name}.py").read_text()))
        assert not [module for module in reached if module.startswith(closed)], name


def test_every_policy_of_the_registry_is_one():
    from mmrl.policies.base import Policy
    from mmrl.policies.registry import MODALITIES, policy_class

    for modality in MODALITIES:
        assert issubclass(policy_class(modality), Policy) and policy_class(modality).modality == modality


ASKS_WHO = re.compile(r"if .*(modality|isinstance\(.*Policy)")


def test_what_trains_never_asks_whom():
    """A kind of policy is the policy's own affair: no branch on it in the objective, the rollouts or the trainer."""
    rooms = ("mmrl/objective/", "mmrl/rollout/", "mmrl/training/")
    asked = [
        f"{place}: {line.strip()}"
        for file in sources("mmrl")
        if (place := file.relative_to(ROOT).as_posix()).startswith(rooms)
        for line in file.read_text().splitlines()
        if ASKS_WHO.search(line)
    ]
    assert not asked
    assert ASKS_WHO.search("if isinstance(policy, FlowPolicy):") and ASKS_WHO.search("x if modality else y")


@pytest.mark.parametrize(
    ("most", "folders"), [(LONGEST_FILE, MAY_IMPORT), (LONGEST_TEST, ("tests", "benchmarks", "docs"))]
)
def test_no_file_is_too_long(most, folders):
    lengths = {f.relative_to(ROOT).as_posix(): len(f.read_text().splitlines()) for f in sources(*folders)}
    assert lengths and not {name: length for name, length in lengths.items() if length > most}


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
