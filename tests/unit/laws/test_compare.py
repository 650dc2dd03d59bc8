"""The largest cells, the errors on them, and the best of nested forms."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.laws.compare import compare, held_out, largest_cells
from modality_forcing.laws.forms import FORMS
from modality_forcing.laws.table import Table
from tests.unit.laws.grid import grid_table

CHINCHILLA, POWER, TRANSFER = FORMS["chinchilla"], FORMS["power"], FORMS["transfer"]


def test_largest_cells():
    table = grid_table(N=np.array([1e7, 1e8, 1e9]), D=np.array([1e8, 1e9, 1e10, 1e11]))
    size = table.variables["N"] * table.variables["D"]
    assert set(size[largest_cells(table, CHINCHILLA, 1)]) == {1e20}
    assert (
        largest_cells(table, CHINCHILLA, 2).sum() == 3
        and largest_cells(table, CHINCHILLA).sum() == 1
    )  # (1e9, 1e10) and (1e8, 1e11)
    assert set(table.variables["N"][largest_cells(table, CHINCHILLA, 1, "N")]) == {1e9}
    with pytest.raises(UserError, match="cannot hold out by 'n'"):
        largest_cells(table, CHINCHILLA, 1, "n")


def test_errors_are_those_on_held_out_rows():
    table = grid_table(noise=1e-6)
    heldout_mask = largest_cells(table, CHINCHILLA, 3)
    assert held_out(table, CHINCHILLA, heldout_mask).rms < 1e-5
    worse = Table.of(table.variables, np.where(heldout_mask, 1.1, 1) * table.loss)
    found = held_out(worse, CHINCHILLA, heldout_mask)
    assert found.rms == pytest.approx(np.log(1.1), rel=1e-3) and found.bias == pytest.approx(
        -np.log(1.1), rel=1e-3
    )
    assert found.rms_fitted < 1e-5 and (found.cells, found.rows) == (
        heldout_mask.sum(),
        heldout_mask.sum(),
    )
    with pytest.raises(UserError, match="no rows remain"):
        held_out(table, CHINCHILLA, np.ones(36, bool))


def test_best_nested_form_has_the_lowest_held_out_error():
    table = grid_table(true=(1.8, 480, 0.35, 2100, 0.37))
    rows, best = compare(table, CHINCHILLA, largest_cells(table, CHINCHILLA))
    assert [row.form for row in rows] == [
        "chinchilla",
        "chinchilla-E",
        "chinchilla-N",
        "chinchilla-D",
    ] and best == "chinchilla"
    floorless = grid_table(POWER, (1e-9, 20.0, 0.3), seed=0, x=np.geomspace(1e6, 1e10, 30))
    rows, best = compare(floorless, POWER, largest_cells(floorless, POWER))
    # Though it fits less closely.
    assert best == "power-E" and rows[0].objective <= rows[1].objective * (1 + 1e-9)
    one_s = grid_table(
        TRANSFER,
        (0.03, 0.6, 0.25, 40, 0.3, 20, 0.35, 2),
        N=np.geomspace(1e6, 1e9, 5),
        n=np.geomspace(1e3, 1e7, 5),
        s=np.array([1e6]),
    )
    rows, best = compare(one_s, TRANSFER, largest_cells(one_s, TRANSFER))
    assert not rows[0].identified and "gamma" in rows[0].reason and best.startswith("transfer-s")
    # Besides none: the rows determine only B and beta together, and yet the law.
    one_n = grid_table(
        TRANSFER,
        (1e-9, 1e-9, 0.12, 3, 0.15, 40, 0.4, 3),
        N=np.array([5e4, 2e5, 8e5]),
        n=np.array([0, 1e4]),
        s=np.geomspace(1e3, 1e5, 4),
    )
    rows, best = compare(one_n, TRANSFER, largest_cells(one_n, TRANSFER))
    errors = {row.form: row.held_out.rms for row in rows if row.held_out}
    assert best == "transfer-E-G" and errors[best] < 0.5 * min(
        errors[row.form] for row in rows if row.identified
    )
    assert compare(table, CHINCHILLA, None)[1] is None


def test_zero_only_in_held_out_rows_is_refused():
    table = grid_table(
        TRANSFER,
        (0.03, 0.6, 0.25, 40, 0.3, 20, 0.35, 2),
        N=np.geomspace(1e6, 1e9, 4),
        n=np.r_[0, 1e4, 1e5, 1e6],
        s=np.geomspace(1e4, 1e6, 4),
    )
    with pytest.raises(UserError, match="all rows with n = 0 are held out"):
        held_out(table, TRANSFER, table.variables["n"] == 0)
