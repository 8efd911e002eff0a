"""Let a CUDA build of torchvision be imported beside a CPU torch.

PyPI ships torchvision for Linux as a CUDA build only. Beside a CPU torch its compiled extension cannot load, and
`import torchvision` raises `operator torchvision::nms does not exist`, which takes transformers, diffusers, peft
and open_clip down with it. Two operator declarations are all its Python code asks for: with them transforms,
`box_iou`, `roi_align` and the models work, while `ops.nms` and `io.decode_image` still raise on their own.

`install()` adds a finder that declares the two at the moment torchvision is imported, and only for that pair of
builds; neither torch nor torchvision is imported before the user asks for it.

Programs that never import mmrl, such as the `accelerate` command, need it too where timm is installed:
`mmrl doctor --repair` writes a start-up file into this environment, if the two builds do not fit.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[Any] = []  # operators live as long as their Library object


def installed_build(spec: ModuleSpec | None = None) -> str | None:
    """The version string of the installed torchvision, such as "0.28.0+cu130", read without importing it."""
    spec = spec or PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    if not version.is_file():
        return None
    for line in version.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "__version__":
            return value.strip().strip("'\"")
    return None


def repaired() -> bool:
    """Whether this process declared the operators."""
    return bool(_declared)


def declare_operators() -> None:
    """Declare what torchvision's Python code expects, unless torch can load the real operators."""
    import torch

    if torch.version.cuda is not None or _declared:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator + SCHEMA)
    _declared.append(library)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        declare_operators()
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None or "+cu" not in (installed_build(spec) or ""):
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


def install() -> None:
    """Put the finder first, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def repair_environment() -> Path | None:
    """Write `mmrl_torchvision.pth`, which calls `install()` whenever Python starts in this environment.

    None, and nothing is written, where torchvision fits torch or is not there.
    """
    import sysconfig

    import torch

    if torch.version.cuda is not None or "+cu" not in (installed_build() or ""):
        return None
    path = Path(sysconfig.get_path("purelib")) / "mmrl_torchvision.pth"
    path.write_text("import mmrl._torchvision\n", encoding="utf-8")
    return path
