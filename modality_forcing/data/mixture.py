"""Several sources in one stream by weight: which of them an example comes from is arithmetic on its position alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from modality_forcing.data.records import RecordSource
from modality_forcing.errors import UserError

PERIOD = 2**16  # most examples after which the order of the sources repeats


@dataclass(frozen=True)
class Part:
    """One source of a mixture: `weight` is its share beside the weights of the others, whatever its length.

    sparse: weights of the patterns that thin its depth (data/sparsity.py); None leaves depth as it comes.
    """

    source: RecordSource
    weight: float
    sparse: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Schedule:
    """An endless order of sources: `schedule[position]` is (number of the source, how often it came before).

    slots: how often each source comes in a period, the sum of them. After any number of examples, each source has come
    less than once more or less than its part of them, and after a period exactly as often as its slots say.
    """

    slots: tuple[int, ...]
    _order: np.ndarray = field(
        init=False, repr=False, compare=False
    )  # u16 [period], the source of each position
    _before: np.ndarray = field(
        init=False, repr=False, compare=False
    )  # i32 [period], how often it came before

    def __post_init__(self) -> None:
        order = _fair(self.slots)
        before = np.empty(len(order), np.int32)
        for number, count in enumerate(self.slots):
            before[order == number] = np.arange(count)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_before", before)

    def __getitem__(self, position: int) -> tuple[int, int]:
        period, place = divmod(position, len(self._order))
        number = int(self._order[place])
        return number, period * self.slots[number] + int(self._before[place])


def schedule(weights: Mapping[str, float]) -> Schedule:
    """Returns the order in which sources of these weights take turns, numbered as they stand.

    Weights that are whole multiples of something (0.7 and 0.3, counts of frames) are kept exactly where the sum of the
    multiples is at most `PERIOD`; any others are rounded to parts of `PERIOD`. Raises UserError without weights, for
    one that is not a positive number, and for one too small to ever come.
    """
    if not weights:
        raise UserError("a mixture of nothing", hint="name at least one data set with its weight")
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight <= 0:
            raise UserError(
                f"weight of {name} is {weight}",
                hint="it must be a positive number; leave out what is not wanted",
            )
    slots = _whole(list(weights.values()))
    for name, count in zip(weights, slots, strict=True):
        if not count:
            hint = "give it more, or leave it out"
            raise UserError(f"weight of {name} is less than 1/{PERIOD} of all", hint=hint)
    return Schedule(slots)


def _whole(weights: Sequence[float]) -> tuple[int, ...]:
    """Returns whole numbers in proportion to the weights: exactly, or the nearest that sum to `PERIOD`."""
    exact = [
        Fraction(repr(float(weight))) for weight in weights
    ]  # the number as it was written, 0.7 and not 0.6999...
    scale = math.lcm(*(part.denominator for part in exact))
    whole = [int(part * scale) for part in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= PERIOD:
        return tuple(number // divisor for number in whole)
    wanted = [part * PERIOD / sum(exact) for part in exact]
    slots = [math.floor(part) for part in wanted]
    by_rest = sorted(range(len(slots)), key=lambda number: (slots[number] - wanted[number], number))
    for number in by_rest[: PERIOD - sum(slots)]:
        slots[number] += 1
    return tuple(slots)


def _fair(slots: Sequence[int]) -> np.ndarray:
    """Returns the source of each position of a period, u16 [sum of slots].

    Of those sources that have come too seldom by a least part of one, the one that must come soonest (R. Tijdeman, The
    chairman assignment problem, Discrete Mathematics 32, 1980): of n sources, no count is off by more than 1 - 1/(2n - 2).
    Rounding each source's count, or splitting off one source after the other, would be simpler and can be off by more.
    """
    period, least = sum(slots), 2 * len(slots) - 2
    if not least:
        return np.zeros(period, np.uint16)
    owed = [0] * len(
        slots
    )  # of each source, in parts of 1 / (least * period): its share so far less how often it came
    gains = [least * count for count in slots]
    order = np.empty(period, np.uint16)
    for position in range(period):
        chosen, soonest = -1, math.inf
        for number, gain in enumerate(gains):
            owed[number] += gain
            left = (least - 1) * period - owed[
                number
            ]  # over its gain: positions until it would be off by too much
            if owed[number] >= period and left < soonest * gain:
                chosen, soonest = number, left / gain
        owed[chosen] -= least * period
        order[position] = chosen
    return order
