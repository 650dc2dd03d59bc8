"""The folder of a sweep: damaged rows and the version of the code."""

from __future__ import annotations

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


def test_version_is_of_the_code_that_numbers_depend_on():
    package = Path(modality_forcing.__file__).parent
    assert all((package / part).exists() for part in VERSIONED_PATHS)
    assert version() == version.__wrapped__() and "+" in version()
