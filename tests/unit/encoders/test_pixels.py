"""Patches: row-major, (row, column, channel) inside, and inverted exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.encoders.pixels import Autoencoder, Pixels, patchify, unpatchify


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 4, 12, 1), (3, 12, 4, 2)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_inverts_patchify(shape, patch):
    x = jax.random.normal(jax.random.key(0), shape)
    y = patchify(x, patch)
    assert y.shape == (shape[0], shape[1] // patch, shape[2] // patch, shape[3] * patch**2)
    np.testing.assert_array_equal(unpatchify(y, patch), x)


def test_patches_are_ordered_row_column_channel():
    x = np.zeros((1, 6, 9, 2), np.float32)
    x[0, 4, 7, 1] = 1.0  # patch (1, 2), inside it row 1, column 1, channel 1
    y = np.asarray(patchify(jnp.asarray(x), 3))
    assert np.argwhere(y).tolist() == [[0, 1, 2, (1 * 3 + 1) * 2 + 1]]


def test_patchify_keeps_bool():
    assert patchify(jnp.ones((1, 4, 4, 1), bool), 2).dtype == bool


def test_pixels_autoencoder_returns_patches():
    pixels: Autoencoder = Pixels(4)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    latent = pixels.encode(x)
    assert latent.shape == (2, 2, 2, pixels.channels)
    np.testing.assert_array_equal(pixels.decode(latent), x)
