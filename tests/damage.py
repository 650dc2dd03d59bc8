"""Damage that a disk or a transfer does to a file, for fuzz tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def examples(count: int) -> settings:
    """Returns settings for so many examples, times FUZZ_FACTOR (`tests/fuzz.py`)."""
    count *= int(os.environ.get("FUZZ_FACTOR", "1"))
    return settings(max_examples=count, suppress_health_check=[*HealthCheck])


def of(content: bytes) -> st.SearchStrategy[bytes]:
    """Returns the content with one byte changed, or cut short, or as it is if empty.

    Most damage is to bytes that are not zero: those of a shard's padding mean nothing.
    """
    if not content:
        return st.just(content)
    position = st.integers(0, len(content) - 1)
    if used := [at for at, byte in enumerate(content) if byte]:
        position |= st.sampled_from(used)

    def change(at: int, flip: int) -> bytes:
        return content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]

    changed = st.builds(change, position, st.integers(1, 255))
    return st.one_of(changed, position.map(lambda end: content[:end]))
