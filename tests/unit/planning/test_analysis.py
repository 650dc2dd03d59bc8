"""What the plans share, of a program that is not compiled here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modality_forcing.chips import CHIPS, GIB
from modality_forcing.planning.analysis import Analysis, analyze
from modality_forcing.planning.compile import Bytes, Compiled, Target
from modality_forcing.planning.roofline import Roofline

TARGET = Target("tpu7x:1x1", 1, CHIPS["tpu7x"], (1, 1), (None, None))  # a chip of two devices


def test_program_that_does_not_fit_has_no_bound():
    found = Analysis(**analyze(TARGET, Compiled(Bytes(4, 3, 2, 1), False, 2.5, ""), 7, 10**12))
    assert (found.params, found.fits, found.compile_seconds) == (7, False, 2.5)
    assert found.chip_gib(3 * GIB) == 6
    assert found.mfu_bound is None and found.collective_lines("step") == []
    assert set(found.bound_json().values()) == {None}


def test_bound_and_collectives_of_a_program():
    bound = Roofline(2.0, 1.5, 0.75, 0.5, 0.25, 1e15, 1.0, 1.0, unknown_loops=())
    made = analyze(TARGET, Compiled(Bytes(4, 3, 2, 1), True, 2.5, ""), 7, 10**12)
    found = replace(
        Analysis(**made),
        bound=bound,
        collectives={"all-gather bf16": {"distinct": 2, "executions": 30, "bytes": 3 * GIB}},
    )
    assert found.mfu_bound == pytest.approx(1e12 / (2 * CHIPS["tpu7x"].bf16_flops))
    assert found.collective_lines("batch") == ["  all-gather bf16 30 a batch, 3.00 GiB a device"]
    assert found.bound_json() == {"roofline_seconds": 2.0, "exposed_collective_seconds": 0.25}
