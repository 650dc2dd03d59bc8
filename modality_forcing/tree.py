"""Nested mappings: flattened to paths, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonObject = dict[str, Any]  # as json.load returns it

Tree = Mapping[str, Any]


def flatten(tree: Tree, separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """Returns {"a/b/c": value} of nested mappings. An empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, separator, path + separator)
        else:
            flat[path] = value
    return flat


def leaves(tree: Tree) -> dict[str, Any]:
    """Returns {"a/b/c": value} of nested mappings, without the empty ones."""
    return {path: leaf for path, leaf in flatten(tree).items() if not isinstance(leaf, Mapping)}


def unflatten(flat: Tree, separator: str = "/") -> dict[str, Any]:
    """Inverts `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(separator)
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def differences(before: Tree, now: Tree) -> str:
    """Returns the differences in the order of names, such as "a.b 1, now 2"; "" if there are none.

    An empty mapping counts as None.
    """
    old, new = ({k: v for k, v in flatten(tree, ".").items() if v != {}} for tree in (before, now))
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in names)
