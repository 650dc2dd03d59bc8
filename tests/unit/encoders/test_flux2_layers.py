"""Layers of the FLUX.2 autoencoder against their definitions in NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.encoders import flux2_layers
from modality_forcing.encoders.flux2_layers import Attention, Conv, Linear, Norm, Residual, Upsample


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def make(kind, *sizes, dtype: Any = jnp.float32) -> Any:
    """A layer of random weights, biases and scales, without compiling the initializers."""
    rng = np.random.default_rng(1)

    def build() -> nnx.Module:
        keywords = {} if kind is Norm else {"rngs": nnx.Rngs(0)}
        return kind(*sizes, dtype=dtype, **keywords)

    graph, state = nnx.split(nnx.eval_shape(build))

    def fill(leaf) -> jax.Array:
        return jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(fill, state))


def convolved(x, w, b):
    """A 3 x 3 convolution of [h w i] without a border."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    rows, columns = x.shape[0] - 2, x.shape[1] - 2
    return sum(
        x[i : i + rows, j : j + columns] @ w[i, j] for i in range(3) for j in range(3)
    ) + np.asarray(b)


def test_convolution_pads_with_zeros():
    conv, x = make(Conv, 3, 5), normal((2, 4, 7, 3))
    for ours, image in zip(conv(x), x, strict=True):
        np.testing.assert_allclose(
            ours, convolved(np.pad(image, ((1, 1), (1, 1), (0, 0))), conv.w, conv.b), atol=1e-5
        )


def test_strided_convolution_pads_below_and_right_only():
    conv, x = make(partial(Conv, stride=2), 3, 5), normal((1, 6, 4, 3))
    theirs = convolved(np.pad(x[0], ((0, 1), (0, 1), (0, 0))), conv.w, conv.b)
    np.testing.assert_allclose(conv(x)[0], theirs[::2, ::2], atol=1e-5)


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (4, 2)])
def test_upsample_equals_convolution_of_repeated_pixels(sides):
    double, x = make(Upsample, 4), normal((1, *sides, 4))
    doubled = np.pad(np.repeat(np.repeat(x[0], 2, 0), 2, 1), ((1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(double(x)[0], convolved(doubled, double.w, double.b), atol=1e-5)


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_group_norm_covers_the_whole_image(far):
    norm, x = make(Norm, 6, 2), far + normal((2, 5, 3, 6))
    for ours, image in zip(norm(x), np.asarray(x, np.float64), strict=True):
        for group in (slice(0, 3), slice(3, 6)):
            values = image[..., group]
            values = (values - values.mean()) / np.sqrt(values.var() + 1e-6)
            theirs = values * np.asarray(norm.scale[group]) + np.asarray(norm.bias[group])
            np.testing.assert_allclose(ours[..., group], theirs, atol=1e-5 if not far else 1e-4)


def test_bfloat16_norm_rounds_once():
    half = make(Norm, 6, 2, dtype=jnp.bfloat16)
    wide = make(Norm, 6, 2)
    x = 30 + normal((1, 5, 3, 6))
    for name in ("scale", "bias"):
        getattr(wide, name)[...] = getattr(half, name)[...].astype(jnp.float32)
    np.testing.assert_array_equal(half(x, jax.nn.silu), wide(x, jax.nn.silu).astype(jnp.bfloat16))


def test_residual_stream_is_float32():
    block, x = make(Residual, 4, 4, 2, dtype=jnp.bfloat16), 1000 + normal((1, 4, 4, 4))
    y = block(x)
    assert y.dtype == jnp.float32
    # The block alone rounds.
    np.testing.assert_array_equal(y - x, (y - x).astype(jnp.bfloat16).astype(jnp.float32))
    assert np.abs(np.asarray(x - x.astype(jnp.bfloat16))).max() > 0  # the input is not rounded


def test_residual_block_adds_to_its_input_or_a_linear_map_of_it():
    x = normal((1, 4, 4, 4))
    for outputs in (4, 6):
        block = make(Residual, 4, outputs, 2)
        block.conv2.w[...] = 0 * block.conv2.w[...]
        kept = x if block.shortcut is None else x @ block.shortcut.w[...] + block.shortcut.b
        np.testing.assert_allclose(block(x), kept + block.conv2.b, atol=1e-5)
        assert (block.shortcut is None) == (outputs == 4)


def attended(attention, x):
    """Attention of [h w c] without chunks."""

    def linear(layer: Linear, y):
        return np.asarray(y, np.float64) @ np.asarray(layer.w) + np.asarray(layer.b)

    y = np.asarray(attention.norm(x[None])[0]).reshape(-1, x.shape[-1])
    logits = linear(attention.q, y) @ linear(attention.k, y).T / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return x + linear(attention.out, weights @ linear(attention.v, y)).reshape(x.shape)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 99])
def test_attention_in_parts_equals_attention_at_once(rows, monkeypatch):
    attention, x = make(Attention, 8, 4), normal((2, 5, 3, 8))
    monkeypatch.setattr(flux2_layers, "LOGITS", rows * 2 * 3 * 15)
    theirs = np.stack([attended(attention, image) for image in x])
    np.testing.assert_allclose(attention(x), theirs, atol=1e-5)


def test_attention_limits_its_logits(monkeypatch):
    attention = make(Attention, 8, 4)
    text = {}
    for most in (2**30, 2 * 16 * 256):
        monkeypatch.setattr(flux2_layers, "LOGITS", most)
        text[most] = str(jax.make_jaxpr(lambda x: attention(x))(jnp.zeros((1, 16, 16, 8))))
    assert "f32[16,1,16,16,16]" in text[2**30]
    assert "f32[2,1,16,16,16]" in text[2 * 16 * 256]
    assert "f32[16,1,16,16,16]" not in text[2 * 16 * 256]


def test_attention_softmax_is_float32():
    attention = make(Attention, 8, 4, dtype=jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda x: attention(x))(jnp.zeros((1, 4, 4, 8), jnp.bfloat16)))
    exponentials = [line for line in text.splitlines() if " = exp " in line]
    assert exponentials
    assert all("f32[" in line for line in exponentials)
