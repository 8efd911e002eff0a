"""`mmrl doctor`: what this machine has, what is missing, and how to mend it. Each check tries the real thing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmrl.errors import MMRLError

LIBRARIES = ("transformers", "diffusers", "accelerate", "peft", "datasets", "safetensors", "qwen-vl-utils")
EXTRAS = {"ocr": "rapidocr", "vllm": "vllm", "ray": "ray", "tracking": "wandb"}
READERS = {"decord": "decord", "pyav": "av"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
LEAST_FREE_GB = 10
"""A 3B model in bf16 with LoRA and three checkpoints takes about 8 GB."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    state   "ok"; "warning": training works, this part of it does not; "error": training does not work
    fix     what to do, when the state is not "ok"
    """

    name: str
    state: Literal["ok", "warning", "error"]
    detail: str
    fix: str = ""


def doctor() -> list[Check]:
    """Run every check; one that raises becomes an error that carries its message."""
    checks = [_guarded("python", _python)]
    checks += [_guarded("torch", _torch), _guarded("accelerator", _accelerator), _guarded("torchvision", _torchvision)]
    checks += [_guarded(name, partial(_library, name)) for name in LIBRARIES]
    checks += [_guarded(f"video: {reader}", partial(_decoder, reader)) for reader in READERS]
    checks += [_guarded("open_clip", _open_clip), _guarded("attention", _attention), _guarded("extras", _extras)]
    checks += [_guarded("disk", _disk), _guarded("browser", _browser), _guarded("hub", _hub)]
    return checks


def examined(model: str) -> list[Check]:
    """What a model is found to be: one line each; an error where it cannot be trained."""
    from mmrl.policies.generation.families.doctor import examine, is_pipeline

    if not is_pipeline(model):
        hint = "name a folder or hub model with a model_index.json, downloaded before"
        return [Check(model, "error", "is not a pipeline of diffusers that can be read here", hint)]
    try:
        return [Check(name, "ok", finding) for name, finding in examine(model)]
    except MMRLError as error:
        return [Check(model, "error", str(error), "docs/generators.md says what can be trained")]


def render(checks: Sequence[Check]) -> Group:
    """One line a check, the fix behind what is not ok, and a closing line; print it on a rich console."""
    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}
    table = Table.grid(padding=(0, 1))
    for check in checks:
        mark, colour = marks[check.state]
        line = Text(check.detail)
        if check.fix:
            line.append(f"  →  {check.fix}", style="bold")
        table.add_row(Text(mark, style=colour), Text(check.name), line)
    counts = {state: sum(c.state == state for c in checks) for state in ("error", "warning")}
    closing = ", ".join(f"{n} {state}{'s' * (n > 1)}" for state, n in counts.items() if n)
    return Group(table, Text(closing or "Everything works.", style="bold"))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        message = str(error).strip() or type(error).__name__
        return Check(name, "error", message.splitlines()[0], "reinstall: pip install -c constraints.txt -e .")


def supported() -> dict[str, Requirement]:
    """The ranges this installation of mmrl asks for, by canonical name."""
    try:
        lines = metadata.requires("mmrl") or []
    except metadata.PackageNotFoundError:
        raise RuntimeError("mmrl is not installed, so its version ranges are unknown") from None
    requirements = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {canonicalize_name(r.name): r for r in requirements}


def _library(name: str) -> Check:
    """The installed version against the supported range, without importing the library."""
    requirement = supported()[canonicalize_name(name)]
    fix = f"pip install '{requirement}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "error", f"not installed, mmrl needs {requirement.specifier}", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, "error", f"{version}, but mmrl is made for {requirement.specifier}", fix)
    return Check(name, "ok", version)


def _python() -> Check:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Check("python", "ok", f"{platform.python_version()} on {system}, {sys.prefix}")


def _torch() -> Check:
    import torch

    if (check := _library("torch")).state != "ok":
        return check
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    return Check("torch", "ok", f"{torch.__version__} ({build} build), {torch.get_num_threads()} threads")


def _accelerator() -> Check:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            fix = "install a CUDA build of torch that this driver supports"
            return Check("accelerator", "warning", "there is an NVIDIA driver, but torch cannot use it", fix)
        return Check("accelerator", "ok", "none: the CPU is enough for the demo and the tests")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    detail = ", ".join(f"{card.name} {card.total_memory / 2**30:.0f} GiB" for card in cards)
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Check("accelerator", "warning", f"{detail}, without bf16", "train in float32: policy.dtype=float32")
    return Check("accelerator", "ok", f"{detail}, bf16")


def _torchvision() -> Check:
    from mmrl import _torchvision

    fix = "install the torchvision that belongs to this torch: pip install -c constraints.txt torchvision"
    try:
        import torchvision
    except Exception as error:
        return Check("torchvision", "error", f"does not import: {error}", fix)
    note = " (a CUDA build beside a CPU torch, repaired on import)" if _torchvision.repaired() else ""
    return Check("torchvision", "ok", f"{torchvision.__version__}{note}")


def _decoder(backend: str) -> Check:
    """Write a clip of four brightening frames and read it back through the reader that training uses."""
    from PIL import Image

    from mmrl.data.video import read_clip
    from mmrl.media import VideoSampling, write_video

    name, package = f"video: {backend}", READERS[backend]
    if find_spec(package) is None:
        if backend == "decord":
            return Check(name, "warning", "not installed here", "nothing to do: PyAV reads the clips")
        return Check(name, "error", "not installed", "pip install av")
    levels = [0, 80, 160, 240]
    sampling = VideoSampling(fps=None, max_frames=4, min_pixels=56 * 56, max_pixels=56 * 56, backend=backend)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_video(clip, [Image.new("RGB", (56, 56), (level,) * 3) for level in levels], 4)
        frames = read_clip(clip, sampling)
        seen = [round(frame.float().mean().item()) for frame in frames.pixels]
    if len(seen) != 4 or any(abs(s - level) > 8 for s, level in zip(seen, levels, strict=True)):
        return Check(name, "error", f"wrote frames of brightness {levels}, read {seen}", f"pip install -U {package}")
    return Check(name, "ok", f"{metadata.version(package)}: wrote and read an H.264 clip")


def _open_clip() -> Check:
    import open_clip

    return Check("open_clip", "ok", f"{open_clip.__version__}, {len(open_clip.list_models())} model configurations")


def _attention() -> Check:
    from transformers.utils import is_flash_attn_2_available

    found = ["eager", "sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]
    absent = "" if len(found) > 2 else "; flash_attention_2 is not available (optional)"
    return Check("attention", "ok", ", ".join(found) + absent)


def _extras() -> Check:
    here = [extra for extra, module in EXTRAS.items() if find_spec(module)]
    absent = [extra for extra in EXTRAS if extra not in here]
    parts = [", ".join(here) or "none installed", f"not installed: {', '.join(absent)} (optional)" if absent else ""]
    return Check("extras", "ok", "; ".join(filter(None, parts)))


def _disk() -> Check:
    folders = {"here": Path.cwd(), "model cache": _existing(os.environ.get("HF_HOME", "~/.cache"))}
    free = {name: shutil.disk_usage(folder).free / 1e9 for name, folder in folders.items()}
    detail = ", ".join(f"{gb:.0f} GB free {name}" for name, gb in free.items())
    if min(free.values()) < LEAST_FREE_GB:
        return Check("disk", "warning", detail, "free some space, or set HF_HOME and the run directory elsewhere")
    return Check("disk", "ok", detail)


def _existing(folder: str) -> Path:
    path = Path(folder).expanduser().absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def find_browser() -> str | None:
    """The path of an installed browser of the Chromium family."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _browser() -> Check:
    if path := find_browser():
        return Check("browser", "ok", path)
    fix = "apt-get install chromium, or any Chromium, to run the tests that open the report"
    return Check("browser", "warning", "Chromium not found", fix)


def _hub() -> Check:
    on = [name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if on:
        return Check("hub", "ok", f"offline by {', '.join(on)}: models are read from folders and the cache only")
    return Check("hub", "ok", "online: models given by name are downloaded; HF_HUB_OFFLINE=1 forbids it")
