"""One process at a time trains into a run directory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.shown import tell
from mmrl.training.storage import writing

_HELD: set[Path] = set()
NAME = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def _no_link(path: str, flags: int) -> int:
    """A link that somebody else left there would have us empty what it points to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class RunLock:
    """Holds `RUN/.lock` until released, or until the process ends, however it ends.

    The system keeps the lock of the file, so what a killed process left behind never has to be cleaned up; the text
    says who holds it. A child that is forked does not inherit it.
    """

    def __init__(self, folder: Path):
        self.path = folder.resolve() / NAME
        if self.path in _HELD:
            raise self._refused({})
        with writing(self.path):
            while not self._take():
                self.file.close()
        _HELD.add(self.path)
        held = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with writing(self.path):
            self.file.truncate(0)
            self.file.write(json.dumps(held))
            self.file.flush()

    def _take(self) -> bool:
        """False where the file was deleted between opening and locking it: another holder tidied up."""
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+", opener=_no_link)  # noqa: SIM115 - held as long as the run
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # systems differ in what they say
            raise self._refused(self._told()) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            tell(f"{self.path.parent} is on a disk that keeps no locks ({error.strerror}): train with one process only")
        return self.path.exists() and os.fstat(self.file.fileno()).st_ino == self.path.stat().st_ino

    def _told(self) -> dict[str, Any]:
        try:
            held = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def _refused(self, held: dict[str, Any]) -> ConfigError:
        who = f"process {held.get('pid', os.getpid())} on {held.get('host', socket.gethostname())}"
        since = f" since {held['since']}" if "since" in held else ""
        return ConfigError(f"{self.path.parent} is in use by {who}{since}; choose another run_dir=..., or wait for it")

    def release(self) -> None:
        """Give it up. A folder that holds nothing else goes: a start that was refused leaves nothing behind."""
        if self.path not in _HELD:
            return
        _HELD.remove(self.path)
        with contextlib.suppress(OSError):
            if os.listdir(self.path.parent) == [NAME]:
                self.path.unlink()
                self.path.parent.rmdir()
            else:
                self.file.truncate(0)
        self.file.close()


def is_held(folder: Path) -> bool:
    """Whether somebody trains into the folder, as the lock's text says: it is emptied in the end, and of this machine
    the process is looked for. Nothing is locked, so that a run which starts meanwhile is not turned away."""
    try:
        held = json.loads((folder / NAME).read_text())
        if held["host"] != socket.gethostname():
            return True
        os.kill(int(held["pid"]), 0)
    except PermissionError:  # a process of somebody else
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
