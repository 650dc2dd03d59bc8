"""The RMS norm computes in float32 and answers in kind; the linear map is a matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.models.layers import Linear, rms_norm, zeros

X = jax.random.normal(jax.random.key(0), (2, 5, 16)) * 7.0


def test_rms_norm_is_its_formula():
    x = np.asarray(X, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(rms_norm(X), expected, rtol=1e-5)
    scale = jnp.arange(16.0)
    np.testing.assert_allclose(rms_norm(X, scale), expected * np.arange(16.0), rtol=1e-5)


def test_rms_norm_ignores_the_size_but_not_the_sign():
    np.testing.assert_allclose(rms_norm(-100 * X), -rms_norm(X), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_rms_norm_of_almost_nothing_is_finite_with_a_finite_gradient(value):
    x = jnp.full((1, 16), value)
    assert np.all(np.isfinite(rms_norm(x)))
    assert np.all(np.isfinite(jax.grad(lambda y: rms_norm(y).sum())(x)))


def test_rms_norm_of_bfloat16_is_rounded_only_at_the_end():
    x = (X * 1000).astype(jnp.bfloat16)
    out = rms_norm(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, rms_norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_linear_is_a_product_in_the_input_s_dtype_with_a_float32_weight():
    layer = Linear(16, 4, rngs=nnx.Rngs(0))
    assert layer.w[...].dtype == jnp.float32 and layer.w[...].shape == (16, 4)
    np.testing.assert_allclose(
        layer(X), np.asarray(X) @ np.asarray(layer.w[...]), rtol=1e-4, atol=1e-4
    )
    assert layer(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_keeps_the_scale_of_what_enters_unless_told_to_start_at_zero():
    x = jax.random.normal(jax.random.key(1), (1000, 256))
    assert float(Linear(256, 256, rngs=nnx.Rngs(0))(x).std()) == pytest.approx(1.0, abs=0.1)
    assert not np.any(Linear(256, 256, rngs=nnx.Rngs(0), init=zeros)(x))
