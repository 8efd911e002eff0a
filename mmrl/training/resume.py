"""Where a run begins: at its start, or at the newest checkpoint that is whole. What lies after it is set aside.

    RUN/set_aside/1/    metrics.jsonl, checkpoints and rollouts of steps after the one a run went back to

Going back is written down before anything moves, so a kill at any moment leaves a run that goes back all the way.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from mmrl.errors import ConfigError, DataError
from mmrl.shown import tell
from mmrl.training import checkpoint
from mmrl.training.storage import sync, write_atomically, writing
from mmrl.training.tracking import parse_metrics

ASIDE = "set_aside"
OURS = frozenset(
    {
        ".lock",
        "config.yaml",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "metrics.damaged.txt",
        "result.json",
        "report.html",
    }
    | {"checkpoints", "rollouts", ASIDE, "tensorboard", "wandb"}
)
MARKS = frozenset({"environment.json", "metrics.jsonl"})
"""A folder with one of them is a run; `config.yaml`, which others write too, comes after them."""
_NUMBERED = re.compile(r"(step|eval)-(\d+)$")


def check_folder(folder: Path, *, made_here: bool = False) -> None:
    """ConfigError for a directory that no run of ours made, or that belongs to someone else.

    made_here  this user trained there before, whoever owns the folder
    """
    if folder.resolve() in (Path("/"), Path.home().resolve()):
        raise ConfigError(f"run_dir={folder}: expected a folder for this run alone")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is a file; expected a new or empty folder")
    if not folder.is_dir():
        return
    with writing(folder):
        names = set(os.listdir(folder))
        owner = folder.stat().st_uid
    if names and not made_here and hasattr(os, "getuid") and owner != os.getuid():
        raise ConfigError(f"run_dir={folder} belongs to another user ({owner}); choose a folder of your own")
    if names & MARKS:
        return
    others = sorted(n for n in names if n not in OURS and not n.startswith("."))
    others += sorted(n for n in names if n in ("config.yaml", ".git"))  # written by no run: a run would write over it
    if others:
        raise ConfigError(
            f"run_dir={folder} holds other files ({', '.join(others[:3])}) and is no run; choose a new or empty folder"
        )


def fresh_start(folder: Path) -> None:
    """Make ready for a new run. Refused where there are checkpoints; steps that none followed are set aside."""
    finish_going_back(folder)
    if held := _step_folders(folder):
        raise ConfigError(
            f"{folder} already holds a run ({held[-1][1].name} in checkpoints): continue it (`--resume {folder}`, in "
            f"Python `resume={str(folder)!r}`), or choose another run_dir"
        )
    if parse_metrics(folder / "metrics.jsonl")[0]:
        tell(f"{folder} was stopped before its first checkpoint: starting again, its steps are in {go_back(folder, 0)}")


def holds_a_run(folder: Path) -> bool:
    """Whether a run got as far as a checkpoint there."""
    return bool(_step_folders(folder))


def is_checkpoint(path: Path) -> bool:
    """Whether a path names a checkpoint, even a damaged one, rather than a run directory."""
    return (path / "state.json").exists() or path.resolve().parent.name == "checkpoints"


def run_folder(path: Path) -> Path:
    """The run directory of a path that names it, or one of its checkpoints."""
    return path.resolve().parent.parent if is_checkpoint(path) else path


def newest_whole(folder: Path, *, weights_only: bool = False) -> Path | None:
    """The newest checkpoint that can be read; newer ones are named with what is wrong. None where there is none at all.

    Raises DataError where every one is damaged.
    """
    found = checkpoint.checkpoints(folder)
    problems = []
    for _, path in reversed(found):
        try:
            checkpoint.check(path, weights_only=weights_only)
        except DataError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            tell(f"{problem}; going on from {path.name}")
        return path
    if problems:
        raise DataError(f"no checkpoint of {folder} is whole: {'; '.join(problems)}")
    return None


def checked(path: Path, *, weights_only: bool = False) -> Path:
    """A checkpoint that was named, if it is whole; DataError names what is not, and an older one."""
    path = path.resolve()
    try:
        checkpoint.check(path, weights_only=weights_only)
    except DataError as error:
        older = [p for _, p in checkpoint.checkpoints(path.parent.parent) if p != path]
        raise DataError(f"{error}" + (f"; others are: {', '.join(map(str, older))}" if older else "")) from None
    return path


def go_back(folder: Path, step: int) -> Path | None:
    """Set aside what lies after `step`: checkpoints, their metrics and rollouts. Returns where, None if nothing."""
    later = [p for at, p in _step_folders(folder) if at > step]
    if not later and (step or not parse_metrics(folder / "metrics.jsonl")[0]):
        return None
    number = 1
    while (folder / ASIDE / str(number)).exists():
        number += 1
    entry = {"step": step, "into": number}
    write_atomically(folder / checkpoint.GOING_BACK, json.dumps(entry))
    finish_going_back(folder)
    return folder / ASIDE / str(number)


def finish_going_back(folder: Path) -> None:
    """Do, or go on with, what was written down; without harm if there is nothing."""
    note, entry = folder / checkpoint.GOING_BACK, checkpoint.going_back(folder)
    if entry is None:
        return
    step, aside = entry["step"], folder / ASIDE / str(entry["into"])
    with writing(aside):
        aside.mkdir(parents=True, exist_ok=True)
        rows, _ = parse_metrics(folder / "metrics.jsonl")
        if later := [row for row in rows if row["step"] > step]:  # they go from there when the file is next opened
            write_atomically(aside / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in later))
        _move([p for at, p in _step_folders(folder) if at > step], aside / "checkpoints")
        _move([p for at, p in _numbered(folder / "rollouts") if at > step], aside / "rollouts")
        _move([p for p in (folder / "result.json",) if p.exists()], aside)
        best = folder / "checkpoints" / checkpoint.BEST
        if best.is_symlink() and not best.exists():
            best.unlink()
        note.unlink()
        sync(note.parent)


def _move(paths: list[Path], into: Path) -> None:
    for path in paths:
        into.mkdir(exist_ok=True)
        os.replace(path, into / path.name)
    if paths:
        sync(into)


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Every `checkpoints/step-N`, whole or not, oldest first."""
    return [(step, path) for step, path in _numbered(folder / "checkpoints") if path.name.startswith("step")]


def _numbered(root: Path) -> list[tuple[int, Path]]:
    paths = root.iterdir() if root.is_dir() else ()
    return sorted((int(match[2]), p) for p in paths if (match := _NUMBERED.match(p.name)))
