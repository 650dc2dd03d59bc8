"""Parity with the least squares of prs-eth/Marigold on ETH3D, where it thins what it aligns on.

data/marigold_alignment.npz was written by make_marigold_goldens.py.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.evaluation.depth_metrics import score
from modality_forcing.evaluation.protocols import Protocol
from modality_forcing.evaluation.resample import thin_columns
from tests.parity.make_marigold_goldens import ARCHIVE, SIDE, SIZES, maps

PROTOCOL = Protocol("marigold", align_max_side=SIDE)


@pytest.fixture(scope="module")
def golden():
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.parametrize("height, width", SIZES)
def test_alignment_keeps_all_rows_and_the_same_columns(golden, height, width):
    column = jnp.broadcast_to(jnp.arange(width), (1, height, width))
    kept = thin_columns(column, SIDE)[0]
    np.testing.assert_array_equal(
        kept, np.broadcast_to(golden[f"{height}x{width}/columns"], kept.shape)
    )
    assert len(kept) == height


@pytest.mark.parametrize("height, width", SIZES)
def test_scale_shift_and_absrel(golden, height, width):
    pred, target, valid = (x[None] for x in maps(height, width))
    scores = score(pred, target, valid, PROTOCOL)
    ours = scores.scale[0], scores.shift[0], scores.absrel[0]
    np.testing.assert_allclose(ours, golden[f"{height}x{width}/scale_shift_absrel"], rtol=5e-6)
