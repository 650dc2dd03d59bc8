"""Stored predictions are looked up by identity; damaged files are ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.predictions import PredictionStore, names_digest

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


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: b"\x93NUMPY" + raw[20:]]
)
def test_damaged_file_counts_as_missing(tmp_path: Path, damage):
    kept = PredictionStore(tmp_path, IDENTITY, 4)
    kept.put(0, DEPTH, SPREAD)
    path = kept.folder / "000000.npy"
    path.write_bytes(damage(path.read_bytes()))
    assert kept.get(0) is None
    kept.put(0, DEPTH, SPREAD)
    assert kept.get(0) is not None


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
