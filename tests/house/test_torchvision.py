"""torchvision imports beside a CPU torch, and the repair does nothing where nothing is broken."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from mmrl import _torchvision

MISMATCH = torch.version.cuda is None and "+cu" in (_torchvision.installed_build() or "")
needs_mismatch = pytest.mark.skipif(not MISMATCH, reason="torch and torchvision are builds of the same kind here")


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def spec_of(folder: Path, version: str) -> ModuleSpec:
    (folder / "version.py").write_text(f"__version__ = '{version}'\ngit_version = 'abc'\n")
    return ModuleSpec("torchvision", None, origin=str(folder / "__init__.py"))


@pytest.mark.parametrize(
    "imports",
    [
        "import torchvision",
        "from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration",
        "import open_clip",
    ],
)
def test_what_needs_torchvision_imports_after_mmrl(imports):
    done = python(f"import mmrl; {imports}")
    assert done.returncode == 0, done.stderr


@needs_mismatch
def test_without_the_repair_torchvision_does_not_import():
    done = python(
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Finder']; import torchvision"
    )
    assert done.returncode != 0
    assert "operator torchvision::nms does not exist" in done.stderr


@needs_mismatch
def test_repaired_torchvision_works():
    done = python(
        "import mmrl, torch, torchvision\n"
        "from torchvision.transforms import v2\n"
        "boxes = torch.tensor([[0, 0, 2, 2.], [0, 0, 1, 2.]])\n"
        "assert torchvision.ops.box_iou(boxes, boxes)[0, 1] == 0.5\n"
        "assert v2.functional.resize(torch.rand(3, 8, 8), [4, 4]).shape == (3, 4, 4)\n"
        "assert mmrl._torchvision.repaired()\n"
    )
    assert done.returncode == 0, done.stderr


def test_neither_torch_nor_torchvision_is_imported_before_it_is_asked_for():
    done = python(
        "import sys, mmrl, importlib.util\n"
        "assert importlib.util.find_spec('torchvision')\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("version", "touched"), [("0.28.0+cu130", True), ("0.28.0+cpu", False), ("0.28.0", False)])
def test_only_a_cuda_build_of_torchvision_is_touched(tmp_path, monkeypatch, version, touched):
    spec = spec_of(tmp_path, version)
    monkeypatch.setattr(_torchvision.PathFinder, "find_spec", lambda *_: spec)
    found = _torchvision._Finder().find_spec("torchvision")
    assert (found is not None) == touched
    assert _torchvision._Finder().find_spec("torchvision.ops") is None


def test_a_cuda_torch_keeps_its_own_operators(monkeypatch):
    monkeypatch.setattr(_torchvision, "_declared", [])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _torchvision.declare_operators()
    assert not _torchvision.repaired()


def test_installing_twice_adds_one_finder():
    _torchvision.install()
    _torchvision.install()
    assert sum(isinstance(f, _torchvision._Finder) for f in sys.meta_path) == 1


def test_a_missing_torchvision_stays_missing(monkeypatch):
    monkeypatch.setattr(_torchvision.PathFinder, "find_spec", lambda *_: None)
    assert _torchvision.installed_build() is None
    assert _torchvision._Finder().find_spec("torchvision") is None


@needs_mismatch
def test_the_environment_s_repair_serves_programs_that_never_import_mmrl(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    written = _torchvision.repair_environment()
    assert written == tmp_path / "mmrl_torchvision.pth"
    forget = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Finder']; "
    forget += "[sys.modules.pop(m) for m in list(sys.modules) if m.startswith('mmrl')]; "
    done = python(f"{forget}import site; site.addsitedir({str(tmp_path)!r}); import timm")
    assert done.returncode == 0, done.stderr


def test_an_environment_whose_builds_fit_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(_torchvision, "installed_build", lambda spec=None: "0.28.0+cpu")
    assert _torchvision.repair_environment() is None
    assert not list(tmp_path.iterdir())
