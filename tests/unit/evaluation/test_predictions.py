"""Stored predictions are looked up by identity; damaged files are ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.evaluation.predictions import PredictionStore, names_digest
from tests import damage

IDENTITY = {"weights": "abc", "sampling": {"steps": 4, "seed": 0}}
DEPTH, SPREAD = np.arange(16, dtype="f4").reshape(4, 4), np.ones((4, 4), "f4")


def test_stored_prediction_is_found_again(tmp_path: Path):
    put = PredictionStore(tmp_path, IDENTITY, 4).put(3, DEPTH, SPREAD)
    again = PredictionStore(tmp_path, dict(reversed(IDENTITY.items())), 4)
    got = again.get(3)
    assert got is not None and got.dtype == np.float32
    np.testing.assert_array_equal(got, put)
    np.testing.assert_array_equal(got, np.stack([DEPTH, SPREAD]))
    assert again.get(2) is None
    assert json.loads((again.folder / "about.json").read_text())["sampling"] == IDENTITY["sampling"]


def test_other_identity_has_another_folder(tmp_path: Path):
    PredictionStore(tmp_path, IDENTITY, 4).put(0, DEPTH, SPREAD)
    other = PredictionStore(tmp_path, {**IDENTITY, "sampling": {"steps": 5, "seed": 0}}, 4)
    assert other.get(0) is None


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> PredictionStore:
    """A store that every example of the fuzz test damages and repairs."""
    return PredictionStore(tmp_path_factory.mktemp("kept"), IDENTITY, 4)


@given(st.data())
@damage.examples(60)
def test_damaged_file_counts_as_missing(kept: PredictionStore, data):
    kept.put(0, DEPTH, SPREAD)
    path = kept.folder / "000000.npy"
    before = path.read_bytes()
    np.testing.assert_array_equal(np.load(path, allow_pickle=False)[0], DEPTH)
    path.write_bytes(data.draw(damage.of(before)))
    assert kept.get(0) is None


def test_map_of_another_size_is_refused(tmp_path: Path):
    kept = PredictionStore(tmp_path, IDENTITY, 4)
    np.save(kept.folder / "000000.npy", np.zeros((2, 3, 4), "f4"))
    assert kept.get(0) is None
    with pytest.raises(ValueError, match="4 pixels a side"):
        kept.put(0, DEPTH[:3], SPREAD)


def test_names_digest_depends_on_order():
    assert names_digest(("a", "b")) == names_digest(("a", "b")) != names_digest(("b", "a"))
    with pytest.raises(UserError, match="no frames"):
        names_digest(())
