"""What a user installs holds everything the folders hold, and the tested pins are inside the promised ranges."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.source import ROOT, WINGS, imported, sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(*extras: str) -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    return [Requirement(r) for r in [*PROJECT["dependencies"], *(r for e in extras for r in optional[e])]]


def build(source: Path, target: Path, hook: str) -> Path:
    """Run a hook of the build backend as pip does, without the network."""
    code = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    done = subprocess.run([sys.executable, "-c", code, hook, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    """Built from a clone that also has sub-packages and an asset nobody listed anywhere."""
    for name in ("rewards/new/__init__.py", "rewards/new/deep/__init__.py", "data/assets/new/card.json"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    return build(checkout, tmp_path_factory.mktemp("wheel"), "build_wheel")


def shipped(checkout: Path) -> set[str]:
    """Every file of the code folders, under the name it is imported by."""
    names = {f.relative_to(checkout).as_posix() for f in checkout.rglob("*") if f.is_file()}
    inside = {n for n in names if n.startswith("mmrl/") and n.split("/")[1] not in WINGS}
    return inside | {f"mmrl/{n}" for n in names if n.split("/")[0] in WINGS}


def test_symlinks_are_relative_and_stay_inside():
    for wing in WINGS:
        assert (ROOT / "mmrl" / wing).readlink() == Path("..") / wing


def test_the_wheel_holds_every_file_and_nothing_else_at_the_top(wheel, checkout):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert shipped(checkout) - names == set()
    assert {n.split("/")[0] for n in names} == {"mmrl", f"mmrl-{metadata.version('mmrl')}.dist-info"}


def test_the_source_distribution_builds_the_same_wheel(wheel, checkout, tmp_path):
    archive = build(checkout, tmp_path, "build_sdist")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    again = build(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path, "build_wheel")
    names = [set(zipfile.ZipFile(w).namelist()) for w in (wheel, again)]
    assert names[0] == names[1]


def test_the_installed_wheel_works_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys, mmrl, mmrl.rewards.new.deep\n"
        "from mmrl.recipes import load_recipe\n"
        "assert load_recipe('grpo').method == 'grpo'\n"
        "print(mmrl.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.parametrize("requirement", requirements("dev", "ocr"), ids=str)
def test_every_pin_is_inside_its_range(requirement):
    assert canonicalize_name(requirement.name) in pins(), f"constraints.txt does not pin {requirement.name}"
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_torch_and_torchvision_belong_together():
    (wanted,) = [r for r in map(Requirement, metadata.requires("torchvision")) if r.name == "torch"]
    assert wanted.specifier.contains(pins()["torch"])
    assert metadata.version("torchvision").split("+")[0] == pins()["torchvision"]


def test_every_library_the_code_imports_is_declared():
    """Direct imports only: what a dependency brings along may leave with its next version."""
    declared = {canonicalize_name(r.name) for r in requirements(*PROJECT["optional-dependencies"])}
    owners = metadata.packages_distributions()
    missing: dict[str, set[str]] = {}
    for file in sources("mmrl", "rewards", "data", "pipelines"):
        for module in imported(ast.parse(file.read_text())):
            top = module.partition(".")[0]
            names = {canonicalize_name(name) for name in owners.get(top, [])}
            if names and not names & (declared | {"mmrl"}):
                missing.setdefault(top, set()).add(file.relative_to(ROOT).as_posix())
    assert not missing


def test_every_declared_library_is_imported():
    """One is not: frames are compared with those of qwen-vl-utils, whose arithmetic they follow."""
    owners = metadata.packages_distributions()
    files = sources("mmrl", "rewards", "data", "pipelines")
    tops = {module.partition(".")[0] for file in files for module in imported(ast.parse(file.read_text()))}
    used = {canonicalize_name(name) for top in tops for name in owners.get(top, [])}
    declared = {canonicalize_name(r.name) for r in requirements()}
    assert declared - used == {"qwen-vl-utils"}
