"""Protocols against float64 NumPy, and their valid combinations."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.depth_metrics import (
    METRICS,
    align_prediction,
    mean_over_sets,
    mean_scores,
    score,
)
from modality_forcing.evaluation.protocols import ALIGNMENTS, MOGE, Protocol, get_protocol


def scenes(count=3, height=40, width=50, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.gamma(2.0, 1.5, (count, height, width)).astype("f4") + 0.3
    pred = (0.4 * target * np.exp(0.2 * rng.normal(size=target.shape)) - 0.05).astype("f4")
    return pred, target, rng.random(target.shape) < 0.6


def plain_metrics(p, g):
    """The metrics in float64, by definition."""
    ratio, logs = np.maximum(p / g, g / p), np.log(p) - np.log(g)
    return [
        np.mean(np.abs(p - g) / g),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
        np.sqrt(np.mean((p - g) ** 2)),
        np.mean(np.abs(np.log10(p) - np.log10(g))),
        np.sqrt(np.mean(logs**2) - np.mean(logs) ** 2),
    ]


def line(x, y):
    return np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y, rcond=None)[0]


def marigold(pred, target, align, least, most):
    p, g = pred.astype(np.float64), target.astype(np.float64)
    if align == "affine":
        scale, shift = line(p, g)
        depth = scale * p + shift
    else:
        scale, shift = line(p[p > 0], 1 / g[p > 0])
        depth = 1 / np.maximum(scale * p + shift, 1e-3)
    return np.clip(depth, max(least, 1e-6), most)


@pytest.mark.parametrize("align", ("affine", "disparity"))
def test_marigold_is_clipped_least_squares_over_all_pixels(align):
    pred, target, valid = scenes()
    pred = 1 / (pred + 0.5) if align == "disparity" else pred
    scores = score(pred, target, valid, get_protocol("marigold", align, depth_range=(0.5, 6.0)))
    for i in range(len(pred)):
        inside = valid[i] & (target[i] >= 0.5) & (target[i] <= 6)
        expected = plain_metrics(
            marigold(pred[i][inside], target[i][inside], align, 0.5, 6.0),
            target[i][inside].astype("f8"),
        )
        got = [float(getattr(scores, m)[i]) for m in METRICS]
        np.testing.assert_allclose(got, expected, rtol=2e-5)


def test_metric_does_not_align():
    pred, target, valid = scenes()
    scores = score(pred, target, valid, get_protocol("metric"))
    for i in range(len(pred)):
        p, g = np.maximum(pred[i][valid[i]], 1e-6).astype("f8"), target[i][valid[i]].astype("f8")
        np.testing.assert_allclose(
            [float(getattr(scores, m)[i]) for m in METRICS], plain_metrics(p, g), rtol=2e-5
        )
    assert np.all(scores.scale == 1) and np.all(scores.shift == 0)


@pytest.mark.parametrize(
    "name, align",
    [("moge", "affine"), ("moge", "scale"), ("moge", "disparity"), ("marigold", "affine")],
)
def test_scores_are_invariant_to_what_is_aligned(name, align):
    pred, target, valid = scenes()
    chosen = get_protocol(name, align)
    moved = 3 * pred + (0 if align == "scale" else 2)
    plain = score(pred, target, valid, chosen)
    other = score(moved.astype("f4"), target, valid, chosen)
    np.testing.assert_allclose(other.absrel, plain.absrel, rtol=1e-3)
    np.testing.assert_allclose(other.delta1, plain.delta1, atol=0.01)


def test_protocols_give_different_scores():
    pred, target, valid = scenes()
    found = {
        (name, align): float(score(pred, target, valid, get_protocol(name, align)).absrel.mean())
        for name, aligns in ALIGNMENTS.items()
        for align in aligns
    }
    # Differs from ("moge", "none") where there are negative depths, and in the seventh digit.
    found.pop(("metric", "none"))
    assert len({round(x, 4) for x in found.values()}) == len(found)


def test_constant_prediction_is_flagged_and_gets_scale_0():
    _, target, valid = scenes()
    for chosen in (MOGE, get_protocol("marigold")):
        scores = score(np.full_like(target, 7), target, valid, chosen)
        assert (
            np.all(scores.constant_pred == 1)
            and np.all(scores.scale == 0)
            and np.all(np.isfinite(scores.absrel))
        )
    assert not score(target, target, valid).constant_pred.any()


def test_one_valid_pixel_can_be_scored_but_not_aligned():
    target = np.full((1, 4, 4), 2.0, "f4")
    valid = np.zeros((1, 4, 4), bool)
    valid[0, 1, 1] = True
    assert np.isnan(score(target, target, valid).absrel[0])
    assert float(score(target, target, valid, get_protocol("metric")).absrel[0]) == 0


def test_target_outside_the_range_is_not_scored():
    pred, target, valid = scenes()
    # 3 is excluded, as published.
    far = np.where(target > 3, np.where(target > 4, 1000, 3), target).astype("f4")
    chosen = Protocol(depth_range=(0.0, 3.0))
    np.testing.assert_array_equal(
        score(pred, far, valid, chosen).absrel, score(pred, target, valid, chosen).absrel
    )


def test_sets_are_weighted_alike():
    small = dict.fromkeys(METRICS, 1.0) | {"images": 1, "skipped": 0}
    large = dict.fromkeys(METRICS, 2.0) | {"images": 999, "skipped": 0}
    empty = mean_scores(score(*(x[:0] for x in scenes())))
    assert mean_over_sets({"a": small, "b": large, "c": empty})["absrel"] == 1.5
    assert mean_over_sets({"a": small, "b": large, "c": empty}) == mean_over_sets(
        {"b": large, "a": small}
    )
    assert np.isnan(mean_over_sets({"c": empty})["absrel"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("sota",),
        ("marigold", "scale"),
        ("metric", "affine"),
        ("moge", "sideways"),
        ("moge", None, (5.0, 1.0)),
    ],
)
def test_unknown_protocols_are_refused(arguments):
    name, align, depth_range = (*arguments, None, None)[:3]
    with pytest.raises(UserError):
        get_protocol(name, align, depth_range=depth_range)


def test_range_may_clip_without_masking():
    pred, target, valid = scenes()
    bounds = (0.5, 3.0)
    clipped = score(
        pred, target, valid, Protocol("marigold", depth_range=bounds, masks_target=False)
    )
    for i in range(len(pred)):
        p, g = pred[i][valid[i]].astype("f8"), target[i][valid[i]].astype("f8")
        expected = plain_metrics(marigold(p, g, "affine", *bounds), g)
        np.testing.assert_allclose(
            [float(getattr(clipped, m)[i]) for m in METRICS], expected, rtol=2e-5
        )


@pytest.mark.parametrize("height, width, count", [(40, 64, 24), (64, 40, 15)])
def test_marigold_aligns_large_maps_on_fewer_columns_and_scores_all(height, width, count):
    pred, target, valid = scenes(height=height, width=width)
    scores = score(pred, target, valid, Protocol("marigold", align_max_side=24))
    columns = np.floor(np.arange(count) * np.float32(64 / 24)).astype(int)
    for i in range(len(pred)):
        inside = valid[i][:, columns]
        p, g = (x[i][:, columns][inside].astype("f8") for x in (pred, target))
        scale, shift = line(p, g)
        depth = np.maximum(scale * pred[i][valid[i]].astype("f8") + shift, 1e-6)
        expected = plain_metrics(depth, target[i][valid[i]].astype("f8"))
        np.testing.assert_allclose(
            [float(getattr(scores, m)[i]) for m in METRICS], expected, rtol=2e-5
        )
    full = score(pred, target, valid, Protocol("marigold", align_max_side=64))
    np.testing.assert_array_equal(
        full.absrel, score(pred, target, valid, Protocol("marigold")).absrel
    )


@pytest.mark.parametrize(
    "chosen",
    [MOGE, get_protocol("moge", "disparity"), get_protocol("marigold", depth_range=(0.5, 6.0))],
)
def test_align_prediction_returns_what_is_scored(chosen):
    pred, target, valid = scenes()
    aligned = align_prediction(pred, target, valid, chosen)
    scores = score(pred, target, valid, chosen)
    for i in range(len(pred)):
        inside = valid[i] & ((target[i] > 0.5) & (target[i] < 6) | (chosen.depth_range is None))
        found = np.mean(np.abs(aligned[i] - target[i])[inside] / target[i][inside])
        assert found == pytest.approx(float(scores.absrel[i]), rel=1e-5)
    if chosen is MOGE:  # also where there is no target
        scale, shift = scores.scale[:, None, None], scores.shift[:, None, None]
        np.testing.assert_allclose(aligned, scale * pred + shift, rtol=1e-4, atol=1e-5)
