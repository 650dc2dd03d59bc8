"""Parity with the evaluation of microsoft/MoGe: subsample, both alignments and scores.

data/moge_metrics.npz holds numbers only, from runs of MoGe's own evaluation on synthetic arrays:
0 dense with outliers, 1 sparse (5%), 2 half valid with many outliers, 3 negative slope, 4 a handful
of pixels. Cases 1, 3 and 4 hold all valid pixels, the others those in the subsample, which is all
that an alignment uses.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from modality_forcing.evaluation.alignment import align_affine_l1, align_scale_l1
from modality_forcing.evaluation.depth_metrics import score
from modality_forcing.evaluation.protocols import Protocol, get_protocol
from modality_forcing.evaluation.resample import subsample

ARCHIVE = Path(__file__).parent / "data" / "moge_metrics.npz"
WHOLE = (1, 3, 4)


@pytest.fixture(scope="module")
def golden():
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        return dict(archive)


def images(golden, case):
    """pred, target, valid [h w] of a case, NaN where the value was not kept."""
    height, width = golden[f"case{case}/size"].astype(int)
    valid, kept = (
        np.unpackbits(golden[f"case{case}/{name}"], count=height * width)
        .astype(bool)
        .reshape(height, width)
        for name in ("valid", "kept")
    )
    pred, target = np.full((2, height, width), np.nan, np.float32)
    pred[kept], target[kept] = golden[f"case{case}/pred"], golden[f"case{case}/truth"]
    return pred, target, valid


def cells_of(golden, case):
    pred, target, valid = images(golden, case)
    return subsample(pred[None], target[None], valid[None])


def objective(fit, pred, target):
    pred, target = pred.astype(np.float64), target.astype(np.float64)
    return np.sum(np.abs(fit[0] * pred + fit[1] - target) / target)


@pytest.mark.parametrize("case", range(5))
def test_subsample_picks_the_same_pixels(golden, case):
    _, _, valid = images(golden, case)
    index = np.arange(valid.size, dtype=np.float32).reshape(valid.shape)
    taken, _, known = subsample(index[None], index[None], valid[None])
    np.testing.assert_array_equal(
        np.asarray(taken)[np.asarray(known)],
        np.cumsum(golden[f"case{case}/subsample_steps"], dtype=int),
    )


@pytest.mark.parametrize("case", range(5))
def test_affine_alignment(golden, case):
    pred, target, known = (np.asarray(x) for x in cells_of(golden, case))
    fit = jax.jit(align_affine_l1)(pred, target, np.where(known, 1 / target, 0))
    scale, shift, loss = golden[f"case{case}/affine"]
    assert float(fit.loss[0]) == pytest.approx(loss, rel=1e-6)
    theirs = objective((scale, shift), pred[known], target[known])
    assert objective(
        (float(fit.scale[0]), float(fit.shift[0])), pred[known], target[known]
    ) <= theirs * (1 + 2e-7)
    # The minimum is flat, so parameters agree to fewer digits than the loss.
    np.testing.assert_allclose((fit.scale[0], fit.shift[0]), (scale, shift), rtol=1e-4)


@pytest.mark.parametrize("case", range(5))
def test_scale_alignment(golden, case):
    pred, target, known = (np.asarray(x) for x in cells_of(golden, case))
    fit = jax.jit(align_scale_l1)(pred, target, np.where(known, 1 / target, 0))
    scale, loss = golden[f"case{case}/scale"]
    assert float(fit.scale[0]) == pytest.approx(scale, rel=1e-6)
    assert float(fit.loss[0]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("case", WHOLE)
def test_affine_scores_at_full_resolution(golden, case):
    pred, target, valid = images(golden, case)
    scores = score(pred[None], target[None], valid[None])
    np.testing.assert_allclose(
        (scores.absrel[0], scores.delta1[0]), golden[f"case{case}/rel_delta1"], atol=1e-6
    )


@pytest.mark.parametrize("case", WHOLE)
def test_strict_mode_fails_exactly_the_nonpositive_depths(golden, case):
    pred, target, valid = (x[None] for x in images(golden, case))
    parity, strict = score(pred, target, valid), score(pred, target, valid, Protocol(strict=True))
    aligned = parity.scale[0] * pred[valid] + parity.shift[0]
    assert parity.delta1[0] - strict.delta1[0] == pytest.approx(np.mean(aligned <= 0), abs=1e-6)
    if case == 3:  # 0.1% of the pixels have negative depth and count as correct in MoGe
        assert np.any(aligned <= 0)


@pytest.mark.parametrize("case", (1, 2, 4))
@pytest.mark.parametrize(
    "align, key", (("disparity", "disparity_affine_invariant"), ("none", "depth_metric"))
)
def test_predictions_of_disparity_and_of_metric_depth(case, align, key):
    """data/moge_full.npz holds all valid pixels of a case as one row: positions do not matter."""
    with np.load(ARCHIVE.with_name("moge_full.npz"), allow_pickle=False) as archive:
        pred = archive[f"case{case}/{'pred_disparity' if align == 'disparity' else 'pred'}"][
            None, None
        ]
        target, (absrel, delta1) = (
            archive[f"case{case}/truth"][None, None],
            archive[f"case{case}/{key}"],
        )
    scores = score(pred, target, target > 0, get_protocol("moge", align))
    # Six decimals of numbers below 1. MoGe computes in float32 too, up to 0.7e-6 from float64.
    assert float(scores.absrel[0]) == pytest.approx(absrel, abs=1.2e-6)
    assert float(scores.delta1[0]) == pytest.approx(delta1, abs=1e-6)
