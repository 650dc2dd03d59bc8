"""Damage that a disk, a transfer or an editor does to a file, for fuzz tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

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


_ODD = (None, True, -1, 0, 2, 0.5, 1e300, "", "x", "1", [], [[]], {}, {"x": 1}, [1, 2])


def of_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Returns JSON, or a line of JSON, with one value replaced by an odd one or left out.

    A checksum is left out, as by someone who edits the file.
    """
    try:
        values = [json.loads(content)]
    except ValueError:
        values = [json.loads(line) for line in content.splitlines()]
    for value in values:
        if isinstance(value, dict):
            value.pop("checksum", None)

    @st.composite
    def change(draw) -> bytes:
        changed = json.loads(json.dumps(values))
        parent, key = changed, draw(st.integers(0, len(changed) - 1))
        while (inside := parent[key]) and isinstance(inside, dict | list):
            if parent is not changed and draw(st.booleans()):
                break  # values at the top are changed most often
            parent, key = inside, draw(st.sampled_from([*_keys(inside)]))
        if draw(st.booleans()):
            parent[key] = draw(st.sampled_from(_ODD))
        else:
            del parent[key]
        return "\n".join(map(json.dumps, changed)).encode()

    return change()


def _keys(value: Any) -> Iterable[Any]:
    return value if isinstance(value, dict) else range(len(value))
