"""Every direction between three modalities is scored, by predictions whose error is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from modality_forcing.evaluation import conversions
from modality_forcing.evaluation.conversions import Arrays, consistency, evaluate
from modality_forcing.evaluation.heldout import HeldOutData, load_records
from modality_forcing.modalities import base
from tests import tiny

CONFIG = tiny.normals()
DATA = load_records(CONFIG, "eval", 5)
THREE = base.build(CONFIG)


def perfect(
    task: str, batch: Arrays, turn: Callable[[np.ndarray], np.ndarray] = lambda x: x
) -> Arrays:
    """Generates the truth, normals turned."""
    read = {"i": {"image"}, "d": {"depth", "valid"}, "n": {"normals"}}
    assert set(batch) == set().union(*(read[x] for x in task.partition("2")[0]))
    return {"depth": np.where(DATA.valid, DATA.depth, 1), "normals": turn(DATA.more["normals"])}


def backwards(normals: np.ndarray) -> np.ndarray:
    return -normals


def test_directions_follow_from_the_modalities():
    expected = {"n2d": "depth", "in2d": "depth", "i2n": "normals", "d2n": "normals"}
    assert conversions.conversions(THREE) == {**expected, "id2n": "normals"}  # i2d is elsewhere
    assert conversions.conversions(base.build(tiny.forcing())) == {}


def test_perfect_predictions_score_perfectly():
    found = evaluate(THREE, DATA, perfect, lambda: DATA)
    assert list(found) == [
        *("n2d", "in2d", "i2n", "d2n", "id2n", "normals_constant", "normals_row_mean"),
        "consistency",
    ]
    for task in ("n2d", "in2d"):
        assert found[task]["absrel"] < 1e-5 and found[task]["images"] == 5
    for task in ("i2n", "d2n", "id2n"):
        assert found[task]["mean_deg"] < 0.1 and found[task]["within_11.25"] == 1
    for baseline in ("normals_constant", "normals_row_mean"):
        assert 10 < found[baseline]["mean_deg"] < 90
    agreement = found["consistency"]
    # At 16 px few planes fit, all of them well.
    assert agreement["mean_deg"] < 5 and 0.3 < agreement["coverage"] < 1
    assert agreement["normals_mean_deg"] < 0.1 and agreement["depth_mean_deg"] < 5


def test_wrong_normals_score_their_angle():
    wrong = partial(perfect, turn=backwards)
    found = evaluate(THREE, DATA, wrong, lambda: DATA)
    assert found["i2n"]["mean_deg"] == pytest.approx(180, abs=0.1)
    assert found["consistency"]["mean_deg"] > 175


def test_unknown_cameras_leave_no_pixel_to_compare():
    unknown = np.full_like(DATA.intrinsics, np.nan)
    data = HeldOutData(*(vars(DATA)[n] for n in ("image", "depth", "valid", "captions", "ids")))
    data.intrinsics, data.more = unknown, DATA.more
    found = consistency(DATA.depth, DATA.more["normals"], data)
    assert found["coverage"] == 0 and found["skipped"] == 5 and np.isnan(found["mean_deg"])
