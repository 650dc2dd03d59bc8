"""Nested mappings are flattened and compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.tree import differences, flatten, unflatten

names = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(
    st.integers() | st.none(), lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(names, trees, max_size=4))
def test_flatten_keys_are_paths_and_unflatten_inverts_it(tree):
    for path, value in flatten(tree, ".").items():
        found = tree
        for name in path.split("."):
            found = found[name]
        assert found == value and not (isinstance(value, dict) and value)
    assert unflatten(flatten(tree)) == tree


def test_flatten_keeps_an_empty_mapping_as_a_value():
    assert flatten({"a": {"b": {}, "c": 1}, "d": {}}, ".") == {"a.b": {}, "a.c": 1, "d": {}}


@given(st.dictionaries(names, trees, max_size=4), st.dictionaries(names, trees, max_size=4))
def test_differences_are_empty_only_for_equal_trees(one, other):
    assert differences(one, one) == ""
    held = [
        {name: value for name, value in flatten(tree, ".").items() if value not in (None, {})}
        for tree in (one, other)
    ]
    assert (differences(one, other) == "") == (held[0] == held[1])


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b 1, now 2"),
        ({"z": 1}, {"a": 2}, "a None, now 2, z 1, now None"),
        ({"a": {}}, {"a": {"b": 1}}, "a.b None, now 1"),
    ],
)
def test_differences_are_listed_in_the_order_of_names(before, now, expected):
    assert differences(before, now) == expected
