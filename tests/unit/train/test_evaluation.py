"""When a run evaluates."""

from __future__ import annotations

from dataclasses import replace

from modality_forcing.train.evaluation import is_due
from tests import tiny


def steps(every: int, total: int = 6, last: int = -1) -> list[int]:
    config = tiny.t2i(steps=total)
    config = replace(config, eval=replace(config.eval, every=every))
    return [step for step in range(total + 1) if is_due(config, step, last)]


def test_first_and_last_weights_are_evaluated_too():
    assert steps(4) == [0, 4, 6]
    assert steps(3) == [0, 3, 6]
    assert steps(100) == [0, 6]


def test_zero_is_off():
    assert steps(0) == []


def test_an_evaluated_step_is_not_evaluated_again():
    assert steps(3, last=3) == [0, 6]
