"""The modality of normals: tokens hold unit vectors, unknown ones are masked, colors are usual."""

from __future__ import annotations

import pickle
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modality_forcing.modalities import base
from modality_forcing.modalities.normals import normalize
from tests import tiny

NORMALS = base.build(tiny.normals())["normals"]
MAP = tiny.batch(tiny.normals())["normals"]
KNOWN = np.any(MAP, axis=-1)


def to_tokens(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x0, mask = NORMALS.to_tokens({"normals": jnp.asarray(values)})
    return np.asarray(x0), np.asarray(mask)


def test_tokens_and_back_are_the_known_normals():
    x0, mask = to_tokens(MAP)
    assert x0.shape == mask.shape == (4, *NORMALS.shape) and NORMALS.channels == 3 * 4**2
    assert np.abs(x0).max() <= 1 and not x0[~mask].any()
    assert mask.sum() == 3 * KNOWN.sum() and 0 < KNOWN.mean() < 1
    back = np.asarray(NORMALS.from_tokens(jnp.asarray(x0)))
    np.testing.assert_allclose(back[KNOWN], MAP[KNOWN], atol=1e-6)
    np.testing.assert_array_equal(back[~KNOWN], [[0, 0, -1]] * (~KNOWN).sum())


def test_length_of_a_known_normal_does_not_matter():
    np.testing.assert_allclose(to_tokens(MAP * np.float32(0.9))[0], to_tokens(MAP)[0], atol=1e-6)


@given(npst.arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_any_prediction_becomes_a_unit_vector(values):
    length = np.linalg.norm(np.asarray(normalize(jnp.asarray(values))), axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)


def test_colors():
    axes = {(1, 0, 0): (255, 128, 128), (0, -1, 0): (128, 255, 128), (0, 0, -1): (128, 128, 255)}
    decoded = np.array([[[*axes, (0, 0, 0)]]], np.float32).reshape(1, 1, 4, 3)
    expected = [*axes.values(), (128, 128, 128)]
    np.testing.assert_array_equal(NORMALS.colorize(decoded)[0, 0], expected)
    assert not NORMALS.is_image and base.build(tiny.normals())["image"].is_image


def test_what_it_reads_comes_from_the_record():
    read = base.record_inputs(tiny.normals())
    assert list(read) == ["normals"] == list(NORMALS.inputs)
    assert pickle.loads(pickle.dumps(read)) == read  # noqa: S301  # to loader processes
    assert NORMALS.inputs["normals"][0] == (16, 16, 3)
    config = tiny.normals()
    both = {k: m for k, m in config.modalities.items() if k != "normals"}
    assert base.record_inputs(replace(config, modalities=both)) == {}
