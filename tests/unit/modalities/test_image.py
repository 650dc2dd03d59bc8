"""The image modality: bytes to [-1, 1] and back, all of it mask."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.modalities import base
from tests import tiny


@pytest.fixture(scope="module")
def image() -> base.Modality:
    return base.build(tiny.t2i())["image"]


def test_bytes_survive_the_round_trip(image):
    pixels = np.arange(3 * 256, dtype=np.int64).reshape(1, 16, 16, 3).astype(np.uint8)
    x0, mask = image.to_tokens({"image": jnp.asarray(pixels)})
    assert x0.shape == mask.shape == (1, *image.shape) == (1, 4, 192)
    assert mask.dtype == bool and bool(jnp.all(mask))
    assert float(x0.min()) == -1.0 and float(x0.max()) == 1.0
    np.testing.assert_array_equal(np.round(np.asarray(image.from_tokens(x0)) * 255), pixels)


def test_tokens_are_in_raster_order(image):
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    pixels[0, 3, 12] = 255  # the token right of the first
    x0, _ = image.to_tokens({"image": jnp.asarray(pixels)})
    assert np.flatnonzero(np.asarray(x0[0]).max(axis=-1) > 0).tolist() == [1]


def test_colors_are_clipped(image):
    out = np.asarray(image.from_tokens(jnp.full((1, *image.shape), 3.0)))
    assert out.shape == (1, 16, 16, 3) and np.all(out == 1.0)
    assert np.all(np.asarray(image.from_tokens(jnp.full((1, *image.shape), -3.0))) == 0.0)
