"""The C allocator of training and sampling on CPUs: freed memory stays with the process."""

from __future__ import annotations

import ctypes
import functools
import sys

import jax

# Of mallopt, in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30  # bytes of a block that is kept


@functools.cache
def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks for the next call; returns whether it does.

    XLA on CPUs allocates all intermediate values of a step as one block and frees it after the
    step. By default glibc maps a block of 32 MiB or more anew each time, so that every step faults
    in each of its pages: a third of the demo's processor time. No other platform and no other
    C library is changed.
    """
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
