"""Where numbers go: `metrics.jsonl` always, wandb and tensorboard on request."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from mmrl.errors import ConfigError

TrackerName = Literal["wandb", "tensorboard"]


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One line a step, flushed to disk at once, so that a killed run keeps every step it made."""

    def __init__(self, path: Path, keep_until: int = 0):
        """Lines past step `keep_until` are dropped: a resumed run writes them again."""
        self.path = path
        kept = [m for m in read_metrics(path) if m["step"] <= keep_until]
        write_atomically(path, "".join(json.dumps(m) + "\n" for m in kept))
        self.file = path.open("a")

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


class Tensorboard:
    def __init__(self, folder: Path, resumed_step: int = 0):
        """Steps past `resumed_step` are hidden: a resumed run writes them again."""
        from torch.utils.tensorboard import SummaryWriter

        purge = resumed_step + 1 if resumed_step else None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of the project that WANDB_PROJECT names, or `mmrl`; wandb reads its other variables itself."""

    def __init__(self, folder: Path, config: dict[str, Any], resumed_step: int = 0):
        import wandb

        known = folder / "wandb" / "run_id"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mmrl"), name=os.environ.get("WANDB_NAME", folder.name),
            id=known.read_text() if resumed_step and known.exists() else None, resume="allow",
            dir=str(folder), config=config,
        )  # fmt: skip
        write_atomically(known, self.run.id)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


def open_trackers(names: list[TrackerName], folder: Path, config: dict[str, Any], resumed_step: int) -> list[Tracker]:
    trackers: list[Tracker] = [JsonLines(folder / "metrics.jsonl", resumed_step)]
    for name in names:
        try:
            tensorboard = name == "tensorboard"
            trackers.append(Tensorboard(folder, resumed_step) if tensorboard else Wandb(folder, config, resumed_step))
        except ImportError as error:
            raise ConfigError(f"tracking: {name} is not installed; pip install 'mmrl[tracking]'") from error
    return trackers


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete line; a last line cut by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Temporary file, fsync, rename: a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """Versions and machine, for `environment.json`."""
    import torch

    packages = ("mmrl", "torch", "transformers", "diffusers", "accelerate", "peft", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": versions,
    }
