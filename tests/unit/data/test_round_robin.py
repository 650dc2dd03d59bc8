"""Sources in turns: what comes first is of all of them."""

from __future__ import annotations

import pytest

from modality_forcing.data.round_robin import Alternating


def test_each_gives_as_many_as_the_shortest_has():
    both = Alternating([["a0", "a1", "a2"], ["b0", "b1"]])  # pyright: ignore[reportArgumentType]
    assert [both[i] for i in range(len(both))] == ["a0", "b0", "a1", "b1"]
    for index in (4, -1):
        with pytest.raises(IndexError, match="of 4"):
            both[index]


def test_one_source_is_itself():
    one = Alternating([["a", "b", "c"]])  # pyright: ignore[reportArgumentType]
    assert [one[i] for i in range(len(one))] == ["a", "b", "c"]
