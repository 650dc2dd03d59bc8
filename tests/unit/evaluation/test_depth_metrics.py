"""Depth metrics: invariances, images without valid pixels, and baselines."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.evaluation import depth_metrics
from modality_forcing.evaluation.depth_metrics import (
    constant_scores,
    mean_scores,
    row_mean_prediction,
    score,
)
from modality_forcing.evaluation.protocols import Protocol, get_protocol


def scenes(count=5, height=20, width=24, seed=0, share=0.7):
    rng = np.random.default_rng(seed)
    target = rng.gamma(2.0, 1.0, (count, height, width)).astype("f4") + 0.2
    pred = (target * np.exp(0.3 * rng.normal(size=target.shape))).astype("f4")
    return pred, target, rng.random(target.shape) < share


def test_affine_copy_of_the_target_scores_perfectly():
    _, target, valid = scenes()
    scores = score(-3 * target + 5, target, valid)
    assert np.all(scores.absrel < 1e-5)
    assert np.all(scores.delta1 == 1)
    np.testing.assert_allclose(scores.scale, -1 / 3, rtol=1e-4)


@pytest.mark.parametrize("scale, shift", [(2.0, 0.0), (1e3, 5.0), (-0.5, 1.0), (1e-3, 0.0)])
def test_scores_do_not_depend_on_scale_and_shift(scale, shift):
    pred, target, valid = scenes()
    plain, moved = score(pred, target, valid), score(scale * pred + shift, target, valid)
    np.testing.assert_allclose(moved.absrel, plain.absrel, rtol=2e-4)
    np.testing.assert_allclose(moved.delta1, plain.delta1, atol=0.01)


@pytest.mark.parametrize("name", ["marigold", "moge"])
@pytest.mark.parametrize("center, contrast", [(1, 1e-6), (-1, 1e-6), (1000, 1e-3)])
def test_prediction_of_little_contrast_is_aligned_as_in_float64(name, center, contrast):
    """Each varies by a few spacings of float32, over many pixels, and scale and shift cancel."""
    _, target, _ = scenes(count=1, height=300, width=400)
    pred = (center + contrast * target.astype("f8")).astype("f4")
    p, g = pred.astype("f8").ravel() - center, target.astype("f8").ravel()
    aligned = np.polyval(np.polyfit(p, g, 1), p)
    expected = np.mean(np.abs(aligned - g) / g)
    protocol = get_protocol(name)
    scores = score(pred, target, np.ones_like(target, bool), protocol)
    # MoGe's minimizes the weighted L1 distance over a subsample: about the same line here.
    assert scores.absrel[0] == pytest.approx(expected, rel=1e-5 if name == "marigold" else 2e-3)
    assert scores.scale[0] == pytest.approx(1 / contrast, rel=0.01)


def test_scores_do_not_depend_on_the_unit_of_the_target():
    pred, target, valid = scenes()
    plain, scaled = score(pred, target, valid), score(pred, 1000 * target, valid)
    np.testing.assert_allclose(scaled.absrel, plain.absrel, rtol=2e-4)


def test_invalid_pixels_have_no_influence():
    pred, target, valid = scenes()
    plain = score(pred, target, valid)
    dirty = score(np.where(valid, pred, np.nan), np.where(valid, target, -1).astype("f4"), valid)
    for a, b in zip(plain, dirty, strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_do_not_depend_on_order_chunks_or_padding(monkeypatch):
    pred, target, valid = scenes(count=7)
    plain = score(pred, target, valid)
    order = np.random.default_rng(1).permutation(7)
    for a, b in zip(plain, score(pred[order], target[order], valid[order]), strict=True):
        np.testing.assert_array_equal(a[order], b)
    monkeypatch.setattr(depth_metrics, "_IMAGES_PER_CHUNK", 3)
    for a, b in zip(plain, score(pred, target, valid), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_absrel_and_delta1_by_hand():
    # The constant 1 is the weighted median of six ones against 1.2 and 2, for every slope.
    target = np.array([[[1, 1, 1, 1], [1, 1, 1.2, 2.0]]], "f4")
    scores = constant_scores(target, np.ones_like(target, bool))
    assert scores.absrel[0] == pytest.approx((0.2 / 1.2 + 1.0 / 2.0) / 8, rel=1e-5)
    assert scores.delta1[0] == pytest.approx(7 / 8)


def test_negative_aligned_depth_passes_delta1_only_in_parity_mode():
    target = np.tile(np.array([1, 2, 3, 4, 5], "f4"), (1, 4, 1))
    pred = target.copy()
    pred[0, 0, 0] = -1.0  # the other 19 make alignment the identity, so -1 stays
    valid = np.ones_like(target, bool)
    parity, strict = score(pred, target, valid), score(pred, target, valid, Protocol(strict=True))
    assert parity.scale[0] == pytest.approx(1, rel=1e-4)
    assert (parity.delta1[0], strict.delta1[0]) == (1.0, pytest.approx(19 / 20))
    assert parity.absrel[0] == strict.absrel[0] == pytest.approx(2 / 20, rel=1e-4)


def test_images_without_enough_pixels_are_nan_and_counted():
    pred, target, valid = scenes(count=4)
    valid[1] = False
    valid[2] = False
    valid[2, 3, 3] = True
    scores = score(pred, target, valid)
    assert (
        np.isnan(scores.absrel).tolist()
        == np.isnan(scores.delta1).tolist()
        == [False, True, True, False]
    )
    mean = mean_scores(scores)
    assert (mean["images"], mean["skipped"]) == (2, 2)
    assert mean["absrel"] == pytest.approx(float(scores.absrel[[0, 3]].mean()))
    assert mean["delta1"] == pytest.approx(float(scores.delta1[[0, 3]].mean()))
    assert np.isnan(mean_scores(score(pred[1:3], target[1:3], valid[1:3]))["absrel"])
    assert mean_scores(score(pred[:0], target[:0], valid[:0]))["images"] == 0


def test_nonfinite_prediction_is_not_skipped():
    pred, target, valid = scenes(count=2, share=1.0)
    pred[0, 4, 4] = np.nan
    scores = score(pred, target, valid)
    assert (scores.absrel[0], scores.delta1[0]) == (np.inf, 0)
    assert np.isfinite(scores.absrel[1])
    assert scores.nonfinite.tolist() == [1, 0]
    means = mean_scores(scores)
    assert (means["absrel"], means["images"], means["nonfinite"]) == (np.inf, 2, 1)


def test_best_constant_is_between_a_prediction_and_other_constants():
    pred, target, valid = scenes()
    constant = constant_scores(target, valid)
    assert np.all(constant.absrel > score(pred, target, valid).absrel)
    for value in (0.9, 1.0, 1.1):
        guess = value * constant.shift[:, None, None]
        error = np.where(valid, np.abs(guess - target) / target, 0).sum((1, 2)) / valid.sum((1, 2))
        assert np.all(error >= constant.absrel - 1e-5)


def test_images_larger_than_the_subsample_are_scored_on_all_pixels():
    pred, target, valid = scenes(count=2, height=70, width=90, share=1.0)
    scores = score(pred, target, valid)
    aligned = scores.scale[:, None, None] * pred + scores.shift[:, None, None]
    np.testing.assert_allclose(
        scores.absrel, np.mean(np.abs(aligned - target) / target, axis=(1, 2)), rtol=1e-4
    )
    ratio = np.maximum(target / aligned, aligned / target)
    np.testing.assert_allclose(scores.delta1, np.mean(ratio < 1.25, axis=(1, 2)), atol=1e-3)


def test_row_mean_divides_each_scene_by_its_own_mean():
    rows = np.array([4.0, 2.0, 1.0, 1.0], "f4")
    train = np.stack([np.tile(rows[:, None], 3), np.tile(1000 * rows[:, None], 3)])
    prediction = row_mean_prediction(train, np.ones_like(train, bool))
    np.testing.assert_allclose(prediction, np.tile(rows[:, None] / 2, 3), rtol=1e-6)
    assert prediction.dtype == np.float32
    scores = score(prediction[None], 7 * train[:1], np.ones_like(train[:1], bool))
    assert scores.absrel[0] < 1e-5


def test_row_mean_fills_empty_rows_and_ignores_invalid_pixels():
    train = np.full((2, 4, 3), 5.0, "f4")
    train[:, 2:] = 10.0
    valid = np.ones_like(train, bool)
    valid[:, 0] = False  # sky
    valid[1] = False
    train[~valid] = np.nan
    prediction = row_mean_prediction(train, valid)
    assert np.array_equal(prediction[0], prediction[1])
    assert prediction[2, 0] == pytest.approx(2 * prediction[1, 0])
    with pytest.raises(ValueError, match="no training depth"):
        row_mean_prediction(train, np.zeros_like(valid))
