"""Layers: RMS norm and linear map, noise levels in float32, text with its padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.config import TextConfig
from modality_forcing.models import layers
from modality_forcing.models.layers import (
    Linear,
    TextEmbedder,
    TimestepEmbedder,
    rms_norm,
    sharded_einsum,
    sinusoid,
    zeros,
)

X = jax.random.normal(jax.random.key(0), (2, 5, 16)) * 7.0


def test_rms_norm_is_its_formula():
    x = np.asarray(X, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(rms_norm(X), expected, rtol=1e-5)
    scale = jnp.arange(16.0)
    np.testing.assert_allclose(rms_norm(X, scale), expected * np.arange(16.0), rtol=1e-5)


def test_rms_norm_ignores_scale_but_not_sign():
    np.testing.assert_allclose(rms_norm(-100 * X), -rms_norm(X), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_rms_norm_of_tiny_values_is_finite_with_a_finite_gradient(value):
    x = jnp.full((1, 16), value)
    assert np.all(np.isfinite(rms_norm(x)))
    assert np.all(np.isfinite(jax.grad(lambda y: rms_norm(y).sum())(x)))


def test_rms_norm_of_bfloat16_is_rounded_only_at_the_end():
    x = (X * 1000).astype(jnp.bfloat16)
    out = rms_norm(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, rms_norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_linear_computes_in_the_input_dtype_with_a_float32_weight():
    layer = Linear(16, 4, rngs=nnx.Rngs(0))
    assert layer.w[...].dtype == jnp.float32 and layer.w[...].shape == (16, 4)
    np.testing.assert_allclose(
        layer(X), np.asarray(X) @ np.asarray(layer.w[...]), rtol=1e-4, atol=1e-4
    )
    assert layer(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_keeps_the_scale_of_its_input_or_starts_at_zero():
    x = jax.random.normal(jax.random.key(1), (1000, 256))
    assert float(Linear(256, 256, rngs=nnx.Rngs(0))(x).std()) == pytest.approx(1.0, abs=0.1)
    assert not np.any(Linear(256, 256, rngs=nnx.Rngs(0), init=zeros)(x))


T = jnp.array([0.0, 0.001, 0.5, 0.99, 0.991, 1.0])


def test_sinusoid_is_its_formula():
    t = np.asarray(T, np.float64)
    frequency = 10_000.0 ** (-np.arange(128) / 128)
    angle = 1000 * t[:, None] * frequency
    np.testing.assert_allclose(
        sinusoid(T), np.concatenate([np.cos(angle), np.sin(angle)], -1), atol=5e-4
    )


def test_sinusoid_separates_close_levels():
    e = np.asarray(sinusoid(T))
    assert np.linalg.norm(e[3] - e[4]) > 1.0


def test_sinusoid_is_float32_for_any_input():
    assert sinusoid(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32


def test_timestep_embedding_is_float32_and_separates_close_levels():
    embed = TimestepEmbedder(32, rngs=nnx.Rngs(0))
    vectors = np.asarray(embed(T))
    assert vectors.shape == (6, 32) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors[3] - vectors[4]) > 0.01 * np.linalg.norm(vectors[3])
    np.testing.assert_allclose(embed(T[2:3])[0], vectors[2], rtol=1e-5, atol=1e-6)


STATES = TextConfig(tokens=3, vocab_size=0, channels=8)
WORDS = TextConfig(tokens=3, vocab_size=10, channels=8)
MASK = np.array([[True, True, False], [False, False, False]])


def words(tokens) -> dict[str, jax.Array]:
    return {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.asarray(MASK)}


def test_padding_is_one_learned_vector():
    text = TextEmbedder(WORDS, 16, rngs=nnx.Rngs(0))
    out = np.asarray(text(words([[1, 2, 3], [4, 5, 6]]), jnp.float32))
    np.testing.assert_array_equal(out[~MASK], np.broadcast_to(text.padding[...], (4, 16)))
    np.testing.assert_array_equal(text(words([[1, 2, 9], [0, 0, 0]]), jnp.float32), out)
    assert np.any(text.padding[...])


def test_words_are_rows_of_the_table():
    text = TextEmbedder(WORDS, 16, rngs=nnx.Rngs(0))
    out = np.asarray(text(words([[1, 2, 0], [0, 0, 0]]), jnp.float32))
    rows = np.asarray(text.table[...])[[1, 2]]
    rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(
        out[0, :2], rows @ np.asarray(text.linear.w[...]), rtol=1e-4, atol=1e-5
    )


def test_states_of_a_frozen_encoder_are_normalized_and_padding_is_ignored():
    text = TextEmbedder(STATES, 16, rngs=nnx.Rngs(0))
    assert not hasattr(text, "table")
    states = jax.random.normal(jax.random.key(0), (2, 3, 8))
    out = text({"tokens": states, "mask": jnp.asarray(MASK)}, jnp.float32)
    filled = text(
        {"tokens": jnp.where(MASK[:, :, None], states, 1e3), "mask": jnp.asarray(MASK)}, jnp.float32
    )
    np.testing.assert_array_equal(out, filled)
    # Normed: a frozen encoder's scale does not matter.
    scaled = text({"tokens": 100 * states, "mask": jnp.asarray(MASK)}, jnp.float32)
    np.testing.assert_allclose(scaled, out, rtol=1e-4, atol=1e-5)


def test_padding_has_no_gradient_in_the_table():
    graph, weights = nnx.split(TextEmbedder(WORDS, 16, rngs=nnx.Rngs(0)))

    def total(w):
        return jnp.sum(nnx.merge(graph, w)(words([[1, 2, 3], [4, 5, 6]]), jnp.float32) ** 2)

    grad = nnx.to_pure_dict(jax.grad(total)(weights))
    assert np.flatnonzero(np.any(np.asarray(grad["table"]), axis=1)).tolist() == [1, 2]
    assert np.all(np.isfinite(grad["table"])) and np.any(grad["padding"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_text_tokens_have_the_model_dtype(dtype):
    text = TextEmbedder(WORDS, 16, rngs=nnx.Rngs(0))
    assert text(words([[1, 2, 3], [4, 5, 6]]), dtype).dtype == dtype


@pytest.mark.parametrize(
    "equation", ["bnd,df->bnf", "bnd,dhk->bhnk", "bhnk,hkd->bnd", "bnd,dhk->bnhk", "bnr,rhk->bhnk"]
)
def test_products_of_long_sequences_equal_einsums(equation, monkeypatch):
    sizes = dict(zip("bndfhkr", (2, 6, 5, 7, 3, 4, 2), strict=True))
    rng = np.random.default_rng(0)
    x, w, dy = (
        rng.standard_normal([sizes[axis] for axis in axes])
        for axes in equation.replace("->", ",").split(",")
    )
    a, b = equation.split("->")[0].split(",")
    y = equation.split("->")[1]
    expected = (
        np.einsum(equation, x, w),
        np.einsum(f"{y},{b}->{a}", dy, w),
        np.einsum(f"{a},{y}->{b}", x, dy),
    )
    monkeypatch.setattr(layers, "LONG", sizes["n"])

    @jax.jit
    def value_and_gradients(x, w, dy):
        out, vjp = jax.vjp(lambda x, w: sharded_einsum(equation, x, w), x, w)
        return out, *vjp(dy)

    operands = [jnp.asarray(value, jnp.float32) for value in (x, w, dy)]
    assert "platform_index" in str(jax.make_jaxpr(value_and_gradients)(*operands))
    for ours, theirs in zip(value_and_gradients(*operands), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
