"""Grouped-query attention against the plain one in numpy, key heads repeated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.models.attention import attention
from modality_forcing.models.rotary import image_positions, rotary_angles

B, N, K = 2, 6, 16
ANGLES = rotary_angles(image_positions(1, (2, 3)), K, 2000.0)


def arrays(h: int, g: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"q": (B, h, N, K), "k": (B, g, N, K), "v": (B, g, N, K), "q_scale": (K,), "k_scale": (K,)}
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def reference(q, k, v, q_scale, k_scale) -> np.ndarray:
    q, k, v, q_scale, k_scale = (np.asarray(x, np.float64) for x in (q, k, v, q_scale, k_scale))

    def prepare(x, scale):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True)) * scale
        pairs = x[..., : K // 2] + 1j * x[..., K // 2 :]
        pairs = pairs * np.exp(1j * ANGLES.astype(np.float64))
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    repeats = q.shape[1] // k.shape[1]
    q, k, v = prepare(q, q_scale), prepare(k, k_scale).repeat(repeats, 1), v.repeat(repeats, 1)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(K)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize(("h", "g"), [(8, 2), (6, 3), (4, 4), (4, 1)])
def test_it_is_attention_with_key_heads_repeated(h, g):
    a = arrays(h, g)
    np.testing.assert_allclose(attention(**a, angles=jnp.asarray(ANGLES)), reference(**a), rtol=1e-4, atol=1e-5)


def test_a_query_head_reads_its_own_key_head_only():
    a = arrays(8, 2)
    before = attention(**a, angles=jnp.asarray(ANGLES))
    after = attention(**a | {"v": a["v"].at[:, 1].add(1.0)}, angles=jnp.asarray(ANGLES))
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    np.testing.assert_allclose(after[:, 4:], before[:, 4:] + 1.0, atol=1e-5)


def test_every_token_sees_every_other():
    a = arrays(4, 2)
    moved = jax.jacobian(lambda v: attention(**a | {"v": v}, angles=jnp.asarray(ANGLES))[0, 0, :, 0])(a["v"])
    assert np.all(np.abs(np.asarray(moved)[:, 0, 0, :, 0]) > 0)


def test_bfloat16_keeps_its_dtype_and_softmax_its_precision():
    a = {n: x.astype(jnp.bfloat16) if n in "qkv" else x for n, x in arrays(4, 2).items()}
    out = attention(**a, angles=jnp.asarray(ANGLES))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), reference(**a), atol=0.04)
