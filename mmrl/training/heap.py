"""What becomes of freed memory, where a process trains on the CPU under glibc.

A training step frees and asks for the same sizes over and over. glibc's own rules are in between and bad at both ends:
large blocks go back to the system and are mapped page by page again, filled with zeros (a product of two tensors of 32
MiB took 20 ms instead of 5), smaller ones stay in a heap whose gaps do not fit the next aligned block.

fast    everything stays in the heap: the update at 1,024 new tokens took 8.0 s instead of 8.4, its peak rose 4 %
small   every large block is mapped, and gone when it is freed: with gradient checkpointing, which frees most of what it
        makes, a step at 1,024 new tokens took 786 MiB after loading instead of 1,972, and 34 s instead of 27

It is set for the whole process and stays when the trainer is gone, since glibc does not tell what was set before; of
several trainers in one process the last decides.
"""

from __future__ import annotations

import ctypes
import os
import platform
from enum import Enum

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of `mallopt` (malloc.h)."""


class Heap(Enum):
    """Values of `mallopt`."""

    FAST = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1))
    SMALL = ((MMAP_MAX, 65536), (MMAP_THRESHOLD, 2**20), (TRIM_THRESHOLD, 2**20))


def settle(heap: Heap) -> bool:
    """Set it for this process; whether it is. Not where the environment sets malloc's parameters (`MALLOC_..._`,
    `GLIBC_TUNABLES`), and not without glibc."""
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([bool(mallopt(parameter, value)) for parameter, value in heap.value])
