"""What every test starts from: jax on the CPU, repeatable examples, real pictures where a folder is named."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports jax. setdefault: whoever asks for another platform gets it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from hypothesis import settings

# No deadline: a first example compiles. Derandomized: a red run is red again; HYPOTHESIS_PROFILE=default searches anew.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

REAL_DATA = "MODALITY_FORCING_REAL_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image and depth samples; the test is skipped where none is named."""
    if not (named := os.environ.get(REAL_DATA)):
        pytest.skip(f"{REAL_DATA} names no folder of real samples")
    folder = Path(named)
    if not folder.is_dir():
        # A wrong name must not pass as "nothing to test".
        pytest.fail(f"{REAL_DATA}={named} is not a folder")
    return folder
