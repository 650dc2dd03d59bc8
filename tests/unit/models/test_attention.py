"""Grouped-query attention: each kernel against attention in numpy with repeated kv heads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.models import attention
from modality_forcing.models.attention import HEAD_AXIS_ORDER, KERNELS, attend, einsum, splash

B, N, K = 2, 6, 16


def arrays(
    h: int, g: int, n: int = N, k: int = K, dtype=jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    q, key, v = (
        jax.random.normal(s, (B, heads, n, k)) for s, heads in zip(keys, (h, g, g), strict=True)
    )
    return (q * k**-0.5).astype(dtype), key.astype(dtype), v.astype(dtype)


def reference(q, k, v) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat(repeats, 1), v.repeat(repeats, 1)
    logits = q @ k.swapaxes(-1, -2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize(("h", "g"), [(8, 2), (6, 3), (4, 4), (4, 1)])
def test_einsum_equals_attention_with_repeated_kv_heads(h, g):
    a = arrays(h, g)
    np.testing.assert_allclose(attend("einsum", *a), reference(*a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "g"), [(8, 2), (4, 4)])
def test_custom_gradient_equals_autodiff(h, g):
    def plain(q, k, v):
        k, v = (jnp.repeat(x, h // g, axis=1) for x in (k, v))
        return jax.nn.softmax(q @ k.swapaxes(-1, -2), axis=-1) @ v

    a = arrays(h, g)
    grads, expected = (
        jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2))(*a)
        for f in (einsum, plain)
    )
    for ours, theirs in zip(grads, expected, strict=True):
        assert np.abs(np.asarray(theirs)).max() > 1e-2
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_bfloat16_gradient_with_one_dominant_weight():
    q, k, v = arrays(4, 2, n=37, dtype=jnp.bfloat16)
    q = 30 * q

    def total(*a):
        return jnp.sum(jnp.sin(einsum(*a).astype(jnp.float32)))

    gradient = jax.grad(total, argnums=(0, 1, 2))
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    for ours, exact in zip(gradient(q, k, v), gradient(*wide), strict=True):
        assert np.abs(ours.astype(jnp.float32) - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("cache", [1, 2 * 4 * 4 * N * N, 3 * 4 * 4 * N * N])
def test_batch_in_parts_equals_the_whole_batch(cache, monkeypatch):
    # Six examples: one, two or three at a time.
    a = tuple(jnp.concatenate([x, x[::-1], x]) for x in arrays(4, 2))

    def value_and_grad():
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(einsum(*a))), argnums=(0, 1, 2))(*a)

    assert "scan" not in str(jax.make_jaxpr(einsum)(*a))
    whole = value_and_grad()
    monkeypatch.setattr(attention, "CACHE", cache)
    assert "scan" in str(jax.make_jaxpr(lambda *a: einsum(*a))(*a))
    parts = value_and_grad()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), parts, whole)


def test_single_heads_equal_the_whole_batch(monkeypatch):
    a = arrays(4, 2)
    whole = einsum(*a)
    monkeypatch.setattr(attention, "LARGE", 4 * 4 * N * N - 1)
    assert "scan" in str(jax.make_jaxpr(lambda *a: einsum(*a))(*a))
    np.testing.assert_allclose(einsum(*a), whole, rtol=1e-5, atol=1e-6)


def test_large_logits_do_not_overflow():
    q, k, v = arrays(4, 2)
    out = einsum(1e4 * q, k, v)
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(out, reference(1e4 * q, k, v), rtol=1e-3, atol=1e-4)


def test_query_heads_read_their_own_kv_head():
    q, k, v = arrays(8, 2)
    before, after = einsum(q, k, v), einsum(q, k, v.at[:, 1].add(1.0))
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    np.testing.assert_allclose(after[:, 4:], before[:, 4:] + 1.0, atol=1e-5)


def test_attention_is_bidirectional():
    q, k, v = arrays(4, 2)
    moved = jax.jacobian(lambda v: einsum(q, k, v)[0, 0, :, 0])(v)
    assert np.all(np.abs(np.asarray(moved)[:, 0, 0, :, 0]) > 0)


def test_bfloat16_keeps_its_dtype_and_softmax_its_precision():
    a = arrays(4, 2, dtype=jnp.bfloat16)
    out = einsum(*a)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), reference(*a), atol=0.04)


@pytest.mark.parametrize(
    ("h", "g", "n", "k"), [(4, 1, 128, 128), (2, 2, 200, 128), (4, 2, 128, 256)]
)
def test_tpu_kernel_equals_einsum_with_its_gradients(h, g, n, k, monkeypatch):
    """Interpreted, 200 tokens as two blocks with padding.

    tests/sharded tests that a TPU program contains the kernel.
    """
    monkeypatch.setattr(attention, "BLOCK", 128)
    a = arrays(h, g, n, k)
    kernel = partial(splash, interpret=True)
    np.testing.assert_allclose(kernel(*a), reference(*a), rtol=1e-4, atol=1e-5)
    grads, plain = (
        jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2))(*a)
        for f in (kernel, einsum)
    )
    for ours, theirs in zip(grads, plain, strict=True):
        assert np.abs(np.asarray(theirs)).max() > 1e-2
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (384, (384, 384)),
        (640, (640, 640)),
        (1024, (1024, 1024)),
        (1536, (768, 1536)),
        (2560, (640, 2560)),  # FLUX.2: text, image and depth at 512 px
        (8704, (512, 8704)),  # at 1024 px
        (1000, (1024, 1024)),
        (2567, (896, 2688)),
    ],
)
def test_blocks_of_the_tpu_kernel(n, expected):
    assert attention.blocks(n) == expected


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_gpu_kernel_equals_reference():
    q, k, v = arrays(8, 2, 128, 128, jnp.bfloat16)
    out = attend("cudnn", *(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)
    np.testing.assert_allclose(out.astype(np.float32), reference(q, k, v), atol=0.04)


def test_each_platform_has_a_kernel_and_each_kernel_a_layout():
    assert {KERNELS[platform] for platform in ("cpu", "gpu", "tpu")} == set(HEAD_AXIS_ORDER)
    with pytest.raises(KeyError):
        attend("flash", *arrays(4, 2))
