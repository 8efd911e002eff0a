"""Writing that is whole or absent, and disks that refuse in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl.errors import MMRLError, StorageError

_OS_ERROR = re.compile(r"os error (\d+)")
MARGIN_BYTES = 2**20
"""Left free beside what is written: names, headers, the line of metrics."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the operating system refuses inside the block becomes a StorageError that names the path and the reason.

    Libraries wrap such errors in their own, so causes and texts are looked through.
    """
    try:
        yield
    except MMRLError:
        raise
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        where = getattr(_os_error(error), "filename", None) or path
        raise StorageError(f"{where}: {reason}") from None


def refusal(error: BaseException) -> str | None:
    """`No space left on device`, if that is what went wrong at the bottom of `error`."""
    if (found := _os_error(error)) is not None:
        return found.strerror or str(found)
    named = _OS_ERROR.search(str(error))
    if named:
        return os.strerror(int(named[1]))
    known = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES)
    return next((os.strerror(n) for n in known if os.strerror(n) in str(error)), None)


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__
    return None


def require_space(path: Path, size: int, what: str) -> None:
    """StorageError where the disk of `path` has no room for `size` bytes: before the first is written."""
    folder = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < size + MARGIN_BYTES:
        raise StorageError(f"{path}: {os.strerror(errno.ENOSPC)}: {what} takes {_size(size)}, {_size(free)} are free")


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def write_atomically(path: Path, content: str | Callable[[Path], object]) -> None:
    """Temporary file, fsync, rename: a reader sees the old content or the new one.

    content  the text, or what writes the temporary file
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            if callable(content):
                content(temporary)
            else:
                temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(path: Path) -> None:
    """Delete a folder: it loses its name first, so that what is half deleted is never taken for whole."""
    if not path.is_dir() or path.is_symlink():
        return
    gone = path if path.name.startswith(".") else path.with_name(f".{path.name}.deleted")
    if gone != path:
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        sync(path.parent)
    shutil.rmtree(gone, ignore_errors=True)
