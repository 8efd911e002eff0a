"""Freed memory is kept for the next tensor, where a process trains on the CPU.

glibc hands large blocks back to the system as soon as they are free, and the next tensor of the same size is mapped
page by page again, filled with zeros before anybody writes to it: a product of two tensors of 32 MiB took 20 ms instead
of 5. A training step frees and asks for the same sizes over and over.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of `mallopt` (malloc.h)."""
LARGEST = 2**31 - 1


def keep_freed() -> bool:
    """Let this process keep what it frees; whether it does. Not where the environment sets malloc's parameters
    (`MALLOC_..._`, `GLIBC_TUNABLES`), and not without glibc."""
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, LARGEST))
