"""Checksums of arrays are equal on any devices and change with any bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.train import checksums

DTYPES = (np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.float16)


def random(dtype, shape=(3, 4, 5)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_devices_agree(dtype):
    x = random(dtype)
    host = checksums._digest_on_host(x)
    device = jax.device_get(checksums._digest_on_devices(jnp.asarray(x)))
    assert [int(part) for part in host] == [int(part) for part in device]


def test_a_checksum_is_a_golden_number():
    tree = {"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": [jnp.int32(7)]}
    assert checksums.checksums(tree) == {"a": "d81376a570deab94", "b/0": "915729e818c9aec4"}


@given(st.sampled_from(DTYPES), st.integers(0, 59), st.integers(0, 59), st.integers(0, 31))
@settings(max_examples=50)
def test_any_flipped_bit_or_two_change_it(dtype, first, second, bit):
    x = random(dtype)
    bits = x.copy().view(f"u{x.dtype.itemsize}").reshape(-1)
    flip = bits.dtype.type(1 << (bit % (8 * x.dtype.itemsize)))
    bits[first] ^= flip
    bits[second] ^= flip if second != first else bits.dtype.type(0)
    before, after = {"w": jnp.asarray(x)}, {"w": jnp.asarray(bits.view(x.dtype).reshape(x.shape))}
    assert checksums.changed(after, checksums.checksums(before)) == ["w"]


def test_order_and_missing_arrays_are_noticed():
    a, b = jnp.asarray(random(np.float32)), jnp.ones(3)
    expected = checksums.checksums({"a": a, "b": b})
    assert checksums.changed({"a": a, "b": b}, expected) == []
    assert checksums.changed({"a": a[::-1], "b": b}, expected) == ["a"]
    assert checksums.changed({"a": a}, expected) == ["b"]
    assert checksums.changed({"a": a, "b": b, "c": b}, expected) == ["c"]


def test_not_finite_arrays_are_named():
    tree = {"a": jnp.ones(3), "b": {"c": jnp.array([1, jnp.nan])}, "d": jnp.full(2, -jnp.inf)}
    assert checksums.not_finite(tree) == ["b/c", "d"]
    assert checksums.not_finite({"n": jnp.arange(3)}) == []
    assert checksums.not_finite({"n": jnp.array([0, jnp.nan], jnp.bfloat16)}) == ["n"]
