"""Resampling: nearest valid pixels by the rule of MoGe, and bilinear resizing."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from modality_forcing.evaluation.resample import nearest_valid, resize_prediction, subsample


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (20, 48)])
def test_small_images_are_not_subsampled(size):
    pred = np.arange(2 * size[0] * size[1], dtype="f4").reshape(2, *size)
    valid = pred % 3 > 0
    p, g, filled = subsample(pred, -pred, valid)
    assert np.array_equal(p, pred.reshape(2, -1))
    assert np.array_equal(g, -pred.reshape(2, -1))
    assert np.array_equal(filled, valid.reshape(2, -1))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(20, 30), (17, 8), (8, 40)]), st.integers(0, 2**31), st.floats(0.02, 1))
def test_subsample_takes_the_nearest_valid_pixel_of_each_window(size, seed, share):
    cells = 8
    valid = np.random.default_rng(seed).random(size) < share
    index = np.arange(valid.size, dtype="f4").reshape(size)
    taken, _, filled = (
        np.asarray(x)[0] for x in subsample(index[None], index[None], valid[None], cells=cells)
    )
    assert valid.reshape(-1)[taken[filled].astype(int)].all()
    step = [max(1.0, s / cells) for s in size]
    for cell in range(cells * cells):
        center = [(k + 0.5) / cells * s for k, s in zip(divmod(cell, cells), size, strict=True)]
        first = [round(c - f / 2) for c, f in zip(center, step, strict=True)]
        window = [
            ((y + 0.5 - center[0]) ** 2 + (x + 0.5 - center[1]) ** 2)
            for y in range(max(first[0], 0), min(first[0] + int(np.ceil(step[0])), size[0]))
            for x in range(max(first[1], 0), min(first[1] + int(np.ceil(step[1])), size[1]))
            if valid[y, x]
        ]
        assert filled[cell] == bool(window)
        if window:
            y, x = divmod(int(taken[cell]), size[1])
            assert (y + 0.5 - center[0]) ** 2 + (x + 0.5 - center[1]) ** 2 == pytest.approx(
                min(window)
            )


def test_nearest_valid_pixel_of_a_cell():
    valid = np.zeros((6, 6), bool)
    valid[1, 2] = valid[4, 4] = True
    rows, columns, filled = nearest_valid(valid, (2, 2))
    np.testing.assert_array_equal(filled, [[True, False], [False, True]])
    assert (rows[0, 0], columns[0, 0], rows[1, 1], columns[1, 1]) == (1, 2, 4, 4)


def test_prediction_is_resized_bilinearly():
    ramp = np.tile(np.arange(8, dtype="f4"), (8, 1))
    wide = resize_prediction(ramp, (16, 32))
    assert wide.shape == (16, 32) and wide.dtype == np.float32
    np.testing.assert_allclose(
        wide[:, 4:-4], np.tile((np.arange(4, 28) + 0.5) / 4 - 0.5, (16, 1)), atol=1e-5
    )
    assert resize_prediction(ramp, (8, 8)) is ramp
