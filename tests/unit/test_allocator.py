"""Freed blocks are used again without new pages."""

from __future__ import annotations

import resource
import sys

import jax
import numpy as np
import pytest

from modality_forcing import allocator


def page_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**23)  # 64 MiB, more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_blocks_are_kept():
    if not allocator.keep_freed_memory():
        pytest.skip("not glibc")
    page_faults()  # the first block's pages are new
    assert page_faults() < 1000


def test_other_backends_and_platforms_are_left_alone(monkeypatch):
    keep = allocator.keep_freed_memory.__wrapped__
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "gpu")
        assert not keep()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep()
