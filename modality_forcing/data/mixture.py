"""Several sources in one stream: by weight for training, or in turns for evaluation.

Which source an example comes from depends only on its position in the stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from modality_forcing.data.records import Record, RecordSource
from modality_forcing.errors import UserError

PERIOD = 2**16  # most examples after which the order of the sources repeats


@dataclass(frozen=True)
class RoundRobin:
    """One record of each source in turn, as many of each as the shortest source has."""

    sources: Sequence[RecordSource]

    def __len__(self) -> int:
        return len(self.sources) * min(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        turn, number = divmod(index, len(self.sources))
        return self.sources[number][turn]


@dataclass(frozen=True)
class MixtureComponent:
    """One source of a mixture; its share is `weight` over the sum of all weights.

    sparsity: weights of the sparsity patterns of its depth (data/sparsity.py); None keeps depth.
    """

    source: RecordSource
    weight: float
    sparsity: Mapping[str, float] | None = None


@dataclass(frozen=True)
class InterleaveSchedule:
    """An endless order of sources: `schedule[position]` is (source, number of its earlier turns).

    slots: turns of each source in a period. At any position the number of turns of a source is less
    than one off its share, and after a period it is exact.
    """

    slots: tuple[int, ...]
    _order: np.ndarray = field(init=False, repr=False, compare=False)  # u16 [period], the sources
    _earlier: np.ndarray = field(init=False, repr=False, compare=False)  # i32 [period]

    def __post_init__(self) -> None:
        order = _interleave(self.slots)
        earlier = np.empty(len(order), np.int32)
        for number, count in enumerate(self.slots):
            earlier[order == number] = np.arange(count)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_earlier", earlier)

    def __getitem__(self, position: int) -> tuple[int, int]:
        period, offset = divmod(position, len(self._order))
        number = int(self._order[offset])
        return number, period * self.slots[number] + int(self._earlier[offset])


def interleave(weights: Mapping[str, float]) -> InterleaveSchedule:
    """Returns the schedule of sources of these weights, numbered in their order.

    Weights in an integer ratio (0.7 and 0.3, counts of frames) are exact if the integers sum to at
    most `PERIOD`; others are rounded to multiples of 1 / PERIOD. Raises UserError without weights,
    for a weight that is not a positive number, and for one that rounds to 0.
    """
    if not weights:
        raise UserError("a mixture of nothing", hint="name at least one data set with its weight")
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight <= 0:
            hint = "it must be a positive number; leave out what is not wanted"
            raise UserError(f"weight of {name} is {weight}", hint=hint)
    slots = _integer_ratio(list(weights.values()))
    for name, count in zip(weights, slots, strict=True):
        if not count:
            hint = "give it more, or leave it out"
            raise UserError(f"weight of {name} is less than 1/{PERIOD} of all", hint=hint)
    return InterleaveSchedule(slots)


def _integer_ratio(weights: Sequence[float]) -> tuple[int, ...]:
    """Returns integers in the ratio of the weights: exactly, or rounded to a sum of `PERIOD`."""
    exact = [Fraction(repr(float(weight))) for weight in weights]  # as written: 0.7, not 0.6999...
    denominator = math.lcm(*(weight.denominator for weight in exact))
    integers = [int(weight * denominator) for weight in exact]
    divisor = math.gcd(*integers)
    if sum(integers) // divisor <= PERIOD:
        return tuple(number // divisor for number in integers)
    wanted = [weight * PERIOD / sum(exact) for weight in exact]
    slots = [math.floor(weight) for weight in wanted]
    by_remainder = sorted(range(len(slots)), key=lambda i: (slots[i] - wanted[i], i))
    for number in by_remainder[: PERIOD - sum(slots)]:
        slots[number] += 1
    return tuple(slots)


def _interleave(slots: Sequence[int]) -> np.ndarray:
    """Returns the source of each position of a period, u16 [sum of slots].

    Of the sources that are far enough behind their share, the one with the earliest deadline is
    next (R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980): with n
    sources, no count is off by more than 1 - 1/(2n - 2). Rounding each count, or splitting off one
    source after another, is simpler and can be off by more.
    """
    period, unit = sum(slots), 2 * len(slots) - 2
    if not unit:
        return np.zeros(period, np.uint16)
    behind = [0] * len(slots)  # share so far minus turns so far, times unit * period
    gains = [unit * count for count in slots]
    order = np.empty(period, np.uint16)
    for position in range(period):
        chosen, earliest = -1, math.inf
        for number, gain in enumerate(gains):
            behind[number] += gain
            slack = (unit - 1) * period - behind[number]  # slack / gain: positions until too late
            if behind[number] >= period and slack < earliest * gain:
                chosen, earliest = number, slack / gain
        behind[chosen] -= unit * period
        order[position] = chosen
    return order
