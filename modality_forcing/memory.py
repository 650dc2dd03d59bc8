"""Keeps the memory of a CPU run from going back and forth between the process and the system at every step."""

from __future__ import annotations

import ctypes
import sys

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1  # malloc.h


def keep_freed() -> bool:
    """Has glibc serve large requests from one heap that never shrinks, and says whether it does.

    XLA asks for all temporaries of a program in one piece at every call. By default glibc maps such a piece anew and unmaps
    it after, and the first touch of each of its pages is a page fault: a third of a small step's time on the CPU. Must run
    before jax starts its threads. The process stays as large as it once was, so not for hosts of accelerators.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):  # another C library
        return False
    return all(libc.mallopt(o, v) for o, v in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1)))  # pyright: ignore
