"""Turns of the sources of a mixture: in proportion after any number of examples, and computed from the position alone."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.mixture import PERIOD, Schedule, schedule
from modality_forcing.errors import UserError

counts = st.lists(st.integers(1, 60), min_size=1, max_size=12)
weights = st.lists(st.floats(1, 1e3), min_size=1, max_size=12)


def turns(order: Schedule, first: int, count: int) -> np.ndarray:
    """Source number and earlier turns of positions, i64 [count 2]."""
    return np.array([order[position] for position in range(first, first + count)])


def named(values: list) -> dict[str, float]:
    return {f"set{number}": float(value) for number, value in enumerate(values)}


@given(counts)
def test_counts_are_in_proportion_after_any_number_of_examples(slots):
    order, total = schedule(named(slots)), sum(slots)
    number = turns(order, 0, 2 * total)[:, 0]
    came = np.cumsum(number[:, None] == np.arange(len(slots)), axis=0)
    due = np.arange(1, 2 * total + 1)[:, None] * np.array(slots) / total
    assert np.abs(came - due).max() <= 1 - 1 / max(2, 2 * len(slots) - 2) + 1e-9
    np.testing.assert_array_equal(came[total - 1], slots)


@settings(max_examples=10)
@given(weights)
def test_any_weights_are_kept_to_a_part_of_the_period(values):
    order = schedule(named(values))
    assert sum(order.slots) <= PERIOD
    shares = np.array([Fraction(value) / sum(map(Fraction, values)) for value in values], float)
    assert np.abs(np.array(order.slots) / sum(order.slots) - shares).max() <= 1 / PERIOD
    first = turns(order, 10 * PERIOD - 50, 3000)  # far into the stream, over the end of a period
    came = np.bincount(first[:, 0], minlength=len(values))
    assert np.abs(came - 3000 * shares).max() < 2.1  # once more or less at both ends


@given(counts, st.integers(0, 10**12))
def test_each_source_counts_its_own_turns(slots, start):
    """Every source is asked for its records 0, 1, 2, ... without a gap: what makes its epochs whole."""
    order = schedule(named(slots))
    seen = turns(order, start, 3 * sum(slots))
    for number in range(len(slots)):
        mine = seen[seen[:, 0] == number, 1]
        np.testing.assert_array_equal(mine, np.arange(mine[0], mine[0] + len(mine)))
    beginning = turns(order, 0, sum(slots))
    assert all(beginning[beginning[:, 0] == number, 1][0] == 0 for number in range(len(slots)))


@pytest.mark.parametrize(
    ("values", "slots"),
    [
        ([0.7, 0.3], (7, 3)),
        ([1, 1, 1], (1, 1, 1)),
        ([8.6, 7.4, 5.6, 10, 6.4, 12, 5, 5], (43, 37, 28, 50, 32, 60, 25, 25)),
        ([3.0], (1,)),
        ([2**0.5, 1], (38390, 27146)),  # 0.58579 and 0.41421 of the period
        ([1, PERIOD - 1], (1, PERIOD - 1)),
    ],
)
def test_whole_multiples_are_kept_exactly(values, slots):
    assert schedule(named(values)).slots == slots


def test_turns_are_mixed_and_not_in_blocks():
    assert [number for number, _ in turns(schedule(named([3, 1])), 0, 8)] == [
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        0,
    ]


def test_is_sent_to_processes_as_it_is():
    order = schedule(named([5, 2, 1]))
    sent = pickle.loads(pickle.dumps(order))
    assert sent == order
    np.testing.assert_array_equal(turns(sent, 3, 30), turns(order, 3, 30))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({}, "a mixture of nothing"),
        ({"a": 1.0, "b": 0.0}, "weight of b is 0.0"),
        ({"a": -1.0}, "weight of a is -1.0"),
        ({"a": 1.0, "b": float("nan")}, "weight of b is nan"),
        ({"a": float("inf")}, "weight of a is inf"),
        ({"a": 1e-7, "b": 1.0}, f"weight of a is less than 1/{PERIOD} of all"),
    ],
)
def test_refuses_what_is_no_mixture(weights, told):
    with pytest.raises(UserError, match=told):
        schedule(weights)
