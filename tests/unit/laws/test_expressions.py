"""Arithmetic on columns and on variables that come before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.laws.expressions import evaluate, match_name
from modality_forcing.laws.rows import Rows

ROWS = Rows(Path("rows.csv"), ({"loss": 4.0, "N": 5.0}, {"loss": 3.5, "N": 5.0}), (2, 3))


def test_name_of_a_column_and_of_another_variable_is_refused():
    size = {"N": np.array([1e7, 2e7])}
    with pytest.raises(UserError, match="'N' is a column and the variable N, which differ"):
        evaluate("loss/N*1", ROWS, size)
    np.testing.assert_allclose(evaluate("loss/`N`", ROWS, size), [0.8, 0.7])


def test_columns_in_backquotes_are_kept_apart():
    rows = Rows(Path("rows.csv"), ({"a b": 4.0, "c-d": 2.0},), (2,))
    np.testing.assert_allclose(evaluate("`a b`/`c-d` + `a b`", rows, {}), [6])
    for wrong in ("`a b``c-d`", "`a b`c", "`a b"):
        with pytest.raises(UserError, match="cannot read the expression"):
            evaluate(wrong, rows, {})
    with pytest.raises(UserError, match="no column '__quoted1__'"):
        evaluate("__quoted1__", rows, {})


def test_a_name_of_any_case_is_matched_unless_two_differ_in_it():
    assert match_name("n", ["N", "D"]) == ["N"] and match_name("n", ["N", "n"]) == ["n"]
    assert match_name("ab", ["AB", "Ab"]) == ["AB", "Ab"] and match_name("x", ["N"]) == []
