"""What all trials share: a tiny run, a child process to do it in, and the question whether it came out as it should.

A child is forked from a process that has imported everything, so that a trial takes about a second. It ends as the
command line would: 0, 2 with one line for an error of ours, 1 with a traceback for anything else, or killed.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from mmrl.errors import MMRLError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import train
from tests.pipelines.runs import save_bases, timeless, write_config

STEPS = 3
LIMIT_SECONDS = 60.0
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
GROWING = frozenset({"os.rename", "os.mkdir", "os.link", "os.symlink"})
"""What needs room on a disk; deleting does not."""
CHANGING = GROWING | {"os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


@dataclass
class Ending:
    """How a child ended: its status, negative for a signal, None where it hung; and what it said on standard error."""

    status: int | None
    said: str

    @property
    def in_one_line(self) -> bool:
        lines = [line for line in self.said.splitlines() if line.strip()]
        return self.status == 2 and "Traceback" not in self.said and lines[-1].startswith("mmrl: ")


@dataclass
class Tally:
    """Trials of one kind, and what went wrong in those that were lost."""

    kind: str
    trials: int = 0
    lost: list[str] = field(default_factory=list)

    def count(self, problem: str) -> None:
        self.trials += 1
        if problem:
            self.lost.append(problem)


class Ground:
    """A folder with a tiny model, its data, and a run that nothing disturbed."""

    def __init__(self, root: Path):
        self.root, self.bases = root, save_bases(root / "bases")
        os.environ["XDG_STATE_HOME"] = str(root / "state")  # what is trusted here is nobody's business
        self.straight = self.fresh("straight")
        ended = in_child(lambda: train(self.straight), root / "straight.log")
        if ended.status != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{ended.said}")

    def fresh(self, name: str, **changes: Any) -> Any:
        """A configuration that runs into `root/name/run`."""
        settings = {"steps": STEPS, "save_every": 1, "keep_checkpoints": 2, "prompts_per_step": 2, "group_size": 2}
        path = write_config(self.root / name, "vlm", self.bases, "grpo", **{**settings, **changes})
        values = yaml.safe_load(path.read_text())
        values["rewards"] = [{**values["rewards"][0], "isolated": False}]
        values["data"] |= {"eval": None, "workers": 0}
        path.write_text(yaml.safe_dump(values))
        return read_config(path, (), "vlm")

    def same_as_straight(self, run: Path) -> str:
        """ "" where metrics and weights are those of the undisturbed run."""
        if timeless(run) != timeless(self.straight.directory):
            steps = [m["step"] for m in timeless(run)]
            return f"other metrics: steps {steps}"
        name = Path("checkpoints") / f"step-{STEPS:06d}" / "trainable.safetensors"
        one, other = (load_file(folder / name) for folder in (run, self.straight.directory))
        return "" if all(one[k].equal(other[k]) for k in other) else "other weights"


def in_child(
    work: Callable[[], Any], log: Path, limit: float = LIMIT_SECONDS, first: Callable[[], Any] = int
) -> Ending:
    """Do `work` in a forked process, as the command line would. `first` runs before it, in the child."""
    return wait_for(fork(work, log, first), log, limit)


def fork(work: Callable[[], Any], log: Path, first: Callable[[], Any] = int) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1), os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115 - not pytest's
        first()
        work()
        status = 0
    except MMRLError as error:
        status = 2
        os.write(2, f"mmrl: {'; '.join([str(error), *getattr(error, '__notes__', ())])}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(status)


def wait_for(pid: int, log: Path, limit: float = LIMIT_SECONDS) -> Ending:
    """Kills what has not ended within `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            return Ending(os.waitstatus_to_exitcode(code), log.read_text(errors="replace"))
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return Ending(None, log.read_text(errors="replace"))


def at_file_operation(
    number: int, folder: Path, act: Callable[[], Any], events: frozenset[str] = CHANGING
) -> Callable[[], None]:  # fmt: skip
    """What installs a hook that calls `act` before the `number`-th change to a file below `folder`, and every later."""

    def install() -> None:
        count = 0
        within = str(folder)

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event == "open":
                path, _, flags = arguments
                changes = isinstance(path, str | os.PathLike) and bool((flags or 0) & WRITING)
            elif event in events:
                path, changes = arguments[0], isinstance(arguments[0], str | os.PathLike)
            else:
                return
            if changes and os.path.abspath(os.fspath(path)).startswith(within):
                count += 1
                if count >= number:
                    act()

        sys.addaudithook(hook)

    return install


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
