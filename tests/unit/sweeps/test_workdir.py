"""The folder of a sweep: damaged rows and the version of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import modality_forcing
from modality_forcing.errors import UserError
from modality_forcing.sweeps.workdir import VERSIONED_PATHS, SweepDir, version
from tests.unit.sweeps.conftest import NAMES, SWEEP, run_cells


def test_damaged_row_is_refused(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{NAMES[0]}.json").write_text("{")
    with pytest.raises(UserError, match="is not a row"):
        SweepDir(SWEEP, tmp_path).row(SWEEP.cells[0])


def test_changed_score_of_a_row_is_refused(tmp_path, trained):
    run_cells(SweepDir(SWEEP, tmp_path))
    path = tmp_path / "cells" / f"{NAMES[0]}.json"
    path.write_text(path.read_text().replace('"i2d_absrel": 0.25', '"i2d_absrel": 0.35'))
    with pytest.raises(UserError, match=r"is not a row \(its checksum differs\); delete it"):
        SweepDir(SWEEP, tmp_path).rows()


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("version", None, "version is not a text"),
        ("axes", [], "axes is not an object"),
        ("params", "1", "params: '1' is not a number"),
        ("frames", -1, "frames is -1"),
        ("i2d_absrel", True, "i2d_absrel: True is not a number"),
        ("seed", None, "seed: None is not a number"),
    ],
)
def test_edited_row_is_refused(tmp_path, trained, column, value, reason):
    run_cells(SweepDir(SWEEP, tmp_path))
    path = tmp_path / "cells" / f"{NAMES[0]}.json"
    row = json.loads(path.read_text()) | {column: value}
    del row["checksum"]
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=rf"is not a row \({reason}\); delete it to score the cell"):
        SweepDir(SWEEP, tmp_path).rows()


def test_version_is_of_the_code_that_numbers_depend_on():
    package = Path(modality_forcing.__file__).parent
    assert all((package / part).exists() for part in VERSIONED_PATHS)
    assert version() == version.__wrapped__() and "+" in version()
