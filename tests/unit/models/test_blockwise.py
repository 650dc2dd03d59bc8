"""Attention in blocks against attention in numpy, and its gradients against autodiff's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.models import blockwise
from modality_forcing.models.attention import ATTENTION, einsum

N, K, BLOCK = 13, 8, 4  # 13 tokens: a block of 4 and three of 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", BLOCK)


def arrays(h: int, g: int, dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(s, (2, m, N, K)) for s, m in zip(keys, (h, g, g), strict=True))
    return (q * K**-0.5).astype(dtype), k.astype(dtype), v.astype(dtype)


def plain(q, k, v):
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    return jax.nn.softmax(q @ k.swapaxes(-1, -2), axis=-1) @ v


def in_blocks(q, k, v):
    return blockwise.blockwise(q, k, v, ATTENTION)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(f, *a):
    out, vjp = jax.vjp(f, *a)
    return out, *vjp(jnp.sin(3 * out))


@pytest.mark.parametrize(("h", "g"), [(4, 2), (3, 3), (4, 1)])
def test_value_and_gradients_equal_those_of_plain_attention(h, g):
    a = arrays(h, g)
    ours, expected = (value_and_gradients(f, *a) for f in (in_blocks, plain))
    for x, y in zip(ours, expected, strict=True):
        assert np.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_as_near_as_attention_with_all_weights():
    a = arrays(4, 2, jnp.bfloat16)
    exact = value_and_gradients(plain, *(x.astype(jnp.float32) for x in a))
    ours, whole = (value_and_gradients(f, *a) for f in (in_blocks, einsum))
    for x, y, z in zip(ours, whole, exact, strict=True):
        assert x.dtype == jnp.bfloat16
        scale = np.abs(z).max()
        assert np.abs(x - z).max() < 1.5 * np.abs(y - z).max() + 1e-3 * scale


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_large_logits_stay_finite(factor):
    q, k, v = arrays(4, 2)
    for x in value_and_gradients(in_blocks, factor * q, k, v):
        assert np.isfinite(x).all()


def test_no_array_of_all_weights_is_computed_or_kept():
    blocks, whole = (
        str(jax.make_jaxpr(partial(value_and_gradients, f))(*arrays(4, 4)))
        for f in (in_blocks, plain)
    )
    assert f"{BLOCK},{N}]" in blocks and f"{N},{N}]" not in blocks
    assert f"{N},{N}]" in whole
