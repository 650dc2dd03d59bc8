"""Interleaved sources: in proportion after any number of examples, from the position alone."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.mixture import PERIOD, InterleaveSchedule, RoundRobin, interleave
from modality_forcing.data.records import Record
from modality_forcing.errors import UserError

counts = st.lists(st.integers(1, 60), min_size=1, max_size=12)
weights = st.lists(st.floats(1, 1e3), min_size=1, max_size=12)


def turns(order: InterleaveSchedule, first: int, count: int) -> np.ndarray:
    """Source number and earlier turns of positions, i64 [count 2]."""
    return np.array([order[position] for position in range(first, first + count)])


def named(values: list) -> dict[str, float]:
    return {f"set{number}": float(value) for number, value in enumerate(values)}


@given(counts)
def test_counts_are_in_proportion_after_any_number_of_examples(slots):
    order, total = interleave(named(slots)), sum(slots)
    number = turns(order, 0, 2 * total)[:, 0]
    came = np.cumsum(number[:, None] == np.arange(len(slots)), axis=0)
    due = np.arange(1, 2 * total + 1)[:, None] * np.array(slots) / total
    assert np.abs(came - due).max() <= 1 - 1 / max(2, 2 * len(slots) - 2) + 1e-9
    np.testing.assert_array_equal(came[total - 1], slots)


@settings(max_examples=10)
@given(weights)
def test_weights_are_rounded_to_the_period(values):
    order = interleave(named(values))
    assert sum(order.slots) <= PERIOD
    shares = np.array([Fraction(value) / sum(map(Fraction, values)) for value in values], float)
    assert np.abs(np.array(order.slots) / sum(order.slots) - shares).max() <= 1 / PERIOD
    first = turns(order, 10 * PERIOD - 50, 3000)  # far into the stream, over the end of a period
    came = np.bincount(first[:, 0], minlength=len(values))
    assert np.abs(came - 3000 * shares).max() < 2.1  # once more or less at both ends


@given(counts, st.integers(0, 10**12))
def test_turns_of_a_source_have_no_gap(slots, start):
    """Every source is asked for its records 0, 1, 2, ..., so that its epochs are complete."""
    order = interleave(named(slots))
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
def test_integer_ratios_are_exact(values, slots):
    assert interleave(named(values)).slots == slots


def test_turns_are_interleaved():
    order = turns(interleave(named([3, 1])), 0, 8)[:, 0]
    assert order.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]


def test_schedule_is_picklable():
    order = interleave(named([5, 2, 1]))
    sent = pickle.loads(pickle.dumps(order))  # noqa: S301  # our own bytes
    assert sent == order
    np.testing.assert_array_equal(turns(sent, 3, 30), turns(order, 3, 30))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "a mixture of nothing"),
        ({"a": 1.0, "b": 0.0}, "weight of b is 0.0"),
        ({"a": -1.0}, "weight of a is -1.0"),
        ({"a": 1.0, "b": float("nan")}, "weight of b is nan"),
        ({"a": float("inf")}, "weight of a is inf"),
        ({"a": 1e-7, "b": 1.0}, f"weight of a is less than 1/{PERIOD} of all"),
    ],
)
def test_invalid_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        interleave(weights)


def records(*ids: str) -> list[Record]:
    image, depth = np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32)
    k = np.eye(3, dtype=np.float32)
    return [Record(image, depth, depth > 0, k, "metric", "", "test", one) for one in ids]


def test_round_robin_ends_with_the_shortest():
    both = RoundRobin([records("a0", "a1", "a2"), records("b0", "b1")])
    assert [both[i].id for i in range(len(both))] == ["a0", "b0", "a1", "b1"]
    for index in (4, -1):
        with pytest.raises(IndexError, match="of 4"):
            both[index]


def test_round_robin_of_one_source():
    one = RoundRobin([records("a", "b", "c")])
    assert [one[i].id for i in range(len(one))] == ["a", "b", "c"]
