"""Nested mappings laid flat: by dotted names, as tables, overrides and comparisons want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns {"a.b.c": value} of nested mappings; an empty one is a value itself."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            flat(value, f"{above}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{above}{key}": value}
        )
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns what differs, "a.b 1, now 2", in the order of names; "" where nothing does. An empty mapping counts as None."""
    old, new = (
        {name: value for name, value in flat(tree).items() if value != {}} for tree in (before, now)
    )
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in names)
