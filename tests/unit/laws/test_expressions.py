"""Arithmetic on columns and on variables that come before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.laws.expressions import evaluate
from modality_forcing.laws.rows import Rows

ROWS = Rows(Path("rows.csv"), ({"loss": 4.0, "N": 5.0}, {"loss": 3.5, "N": 5.0}), (2, 3))


def test_name_of_a_column_and_of_another_variable_is_refused():
    size = {"N": np.array([1e7, 2e7])}
    with pytest.raises(UserError, match="'N' is a column and the variable N, which differ"):
        evaluate("loss/N*1", ROWS, size)
    np.testing.assert_allclose(evaluate("loss/`N`", ROWS, size), [0.8, 0.7])
