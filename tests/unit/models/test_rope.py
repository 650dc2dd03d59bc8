"""Rotary positions: attention sees differences only, along four axes that do not mix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.encoders.pixels import patchify
from modality_forcing.models.rope import (
    apply_rope,
    image_positions,
    rotary_angles,
    rotary_table,
    text_positions,
)

K, THETA = 32, 2000.0
Q, KEY = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, K))
POSITION = st.lists(st.integers(0, 40), min_size=4, max_size=4).map(np.array)


def logit(p: np.ndarray, s: np.ndarray) -> float:
    """The attention logit of a query at p and a key at s."""

    def rotate(x, position):
        return apply_rope(x, jnp.asarray(rotary_angles(position[None], K, THETA)))

    return float(jnp.sum(rotate(Q, p) * rotate(KEY, s)))


@given(p=POSITION, s=POSITION, by=POSITION)
def test_only_the_difference_of_positions_counts(p, s, by):
    assert logit(p + by, s + by) == pytest.approx(logit(p, s), abs=2e-4)


@pytest.mark.parametrize("axis", range(4))
def test_each_axis_counts(axis):
    step = np.eye(4, dtype=int)[axis]
    here = np.array([1, 2, 3, 4])
    assert abs(logit(here, here + step) - logit(here, here)) > 1e-2
    assert abs(logit(here, here + step) - logit(here, here - step)) > 1e-2  # and its direction


@pytest.mark.parametrize("axis", range(4))
def test_each_axis_turns_its_own_quarter(axis):
    still, moved = (rotary_angles(np.eye(4, dtype=int)[[axis]] * by, K, THETA)[0] for by in (0, 1))
    turned = np.flatnonzero(moved - still)
    assert turned.tolist() == list(range(axis * K // 8, (axis + 1) * K // 8))


def test_frequencies_fall_from_one_by_powers_of_theta():
    angles = rotary_angles(np.array([[0, 3, 0, 0]]), 128, THETA)[0, 16:32]
    np.testing.assert_allclose(angles, 3 * THETA ** (-np.arange(16) / 16), rtol=1e-6)


def test_rotation_keeps_lengths_and_the_zero_position():
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, K))
    angles = jnp.asarray(rotary_angles(np.arange(20).reshape(5, 4), K, THETA))
    np.testing.assert_allclose(
        jnp.linalg.norm(apply_rope(x, angles), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(apply_rope(x, jnp.zeros((5, K // 2))), x)


def test_rotation_of_bfloat16_happens_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 1, 5, K)).astype(jnp.bfloat16)
    angles = jnp.asarray(rotary_angles(np.arange(20).reshape(5, 4), K, THETA))
    out = apply_rope(x, angles)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        out, apply_rope(x.astype(jnp.float32), angles).astype(jnp.bfloat16)
    )


def test_image_positions_follow_the_patches():
    rows, columns = np.mgrid[:4, :6]
    # 8 x 12 pixels.
    image = np.stack([rows, columns], axis=-1)[None].repeat(2, 1).repeat(2, 2).astype(np.float32)
    positions = np.asarray(patchify(jnp.asarray(image), 2)).reshape(24, 4, 2)
    corner = np.asarray(image_positions(3, (4, 6)))
    assert np.all(corner[:, 0] == 3) and np.all(corner[:, 3] == 0)
    # The position of each pixel's token.
    coarse = np.repeat(np.repeat(np.stack([rows, columns], -1), 2, 0), 2, 1)
    np.testing.assert_array_equal(image[0], coarse)
    np.testing.assert_array_equal(corner[:, 1:3], positions[:, 0])


def test_text_positions_count_on_an_axis_of_their_own():
    np.testing.assert_array_equal(text_positions(3), [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]])


def test_table_is_exact_at_the_last_text_position():
    """Cosines of float32 angles are off by up to 1e-5 there."""
    positions = np.array([[0, 0, 0, 511]])
    exact = 511.0 * 2000.0 ** -(np.arange(16) / 16)
    cos, sin = rotary_table(positions, 128, 2000.0)
    np.testing.assert_allclose(cos[0, -16:], np.cos(exact), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin[0, -16:], np.sin(exact), rtol=0, atol=1e-7)
    assert np.array_equal(cos[0, :48], np.ones(48))  # the other three axes
