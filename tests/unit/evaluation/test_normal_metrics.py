"""Angular errors: known angles, masks, and pooling over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.evaluation.normal_metrics import (
    angular_error,
    constant_prediction,
    row_mean_prediction,
    summarize,
)

FORWARD = np.float32((0, 0, -1))


def turned(*degrees: float) -> np.ndarray:
    """Normals [1 1 n 3], so many degrees from FORWARD."""
    angle = np.radians(degrees)
    turned = np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], -1)
    return turned[None, None].astype(np.float32)


@given(st.floats(0, 180), st.floats(1e-3, 1e3))
def test_angle_is_exact_and_free_of_length(degrees, length):
    error = angular_error(turned(degrees) * np.float32(length), turned(0))
    assert error.item() == pytest.approx(degrees, abs=2e-5)


def test_unknown_pixels_are_left_out_and_not_finite_ones_count_as_worst():
    pred, target = turned(0, 20, 0, 5), turned(10, 0, 0, 0)
    target[0, 0, 1], pred[0, 0, 2], pred[0, 0, 3] = 0, 0, np.nan
    np.testing.assert_allclose(
        angular_error(pred, target), [[[10, np.nan, np.nan, 180]]], rtol=1e-5
    )


def test_statistics_are_over_all_pixels_of_the_set():
    errors = np.full((3, 1, 4), np.nan, np.float32)
    errors[0, 0], errors[1, 0, 0] = (0, 11.25, 22, 30), 31
    found = summarize(errors)
    assert found["mean_deg"] == pytest.approx(94.25 / 5) and found["median_deg"] == 22
    within = [found[f"within_{x}"] for x in ("11.25", "22.5", "30")]
    assert within == pytest.approx([0.4, 0.6, 0.8])
    assert (found["images"], found["skipped"]) == (2, 1)
    nothing = summarize(errors[2:])
    assert np.isnan(nothing["mean_deg"]) and nothing["skipped"] == 1


def test_baselines():
    target = np.broadcast_to(turned(0, 40), (2, 3, 2, 3)).copy()
    target[1] *= np.float32((-1, 1, 1))
    constant = constant_prediction(target)
    np.testing.assert_allclose(angular_error(constant, target), 20, atol=1e-4)
    rows = target.copy()
    rows[:, 2] = 0  # a row nobody knows has no direction
    profile = row_mean_prediction(rows)
    error = angular_error(np.broadcast_to(profile, rows.shape), rows)
    np.testing.assert_allclose(error[:, :2], np.broadcast_to([0, 40], (2, 2, 2)), atol=1e-4)
    assert np.isnan(error[:, 2]).all()
