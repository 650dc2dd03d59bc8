"""Grouped-query attention of each kernel against the plain one in numpy, key heads repeated."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.models import attention
from modality_forcing.models.attention import KERNELS, HEAD_AXIS_ORDER, attend, einsum, splash

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
def test_it_is_attention_with_key_heads_repeated(h, g):
    a = arrays(h, g)
    np.testing.assert_allclose(attend("einsum", *a), reference(*a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "g"), [(8, 2), (4, 4)])
def test_the_gradient_by_hand_is_that_of_softmax(h, g):
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


def test_the_gradient_in_bfloat16_holds_where_one_weight_is_nearly_all():
    q, k, v = arrays(4, 2, n=37, dtype=jnp.bfloat16)
    q = 30 * q
    of = lambda *a: jax.grad(
        lambda *a: jnp.sum(jnp.sin(einsum(*a).astype(jnp.float32))), argnums=(0, 1, 2)
    )(*a)
    for ours, exact in zip(
        of(q, k, v), of(*(x.astype(jnp.float32) for x in (q, k, v))), strict=True
    ):
        assert np.abs(ours.astype(jnp.float32) - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("cache", [1, 2 * 4 * 4 * N * N, 3 * 4 * 4 * N * N])
def test_a_few_examples_at_a_time_are_the_same(cache, monkeypatch):
    a = tuple(
        jnp.concatenate([x, x[::-1], x]) for x in arrays(4, 2)
    )  # six examples: by one, by two, by three
    of = lambda: jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(einsum(*a))), argnums=(0, 1, 2))(*a)
    assert "scan" not in str(jax.make_jaxpr(einsum)(*a))
    whole = of()
    monkeypatch.setattr(attention, "CACHE", cache)
    assert "scan" in str(jax.make_jaxpr(lambda *a: einsum(*a))(*a))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), of(), whole)


def test_large_logits_do_not_overflow():
    q, k, v = arrays(4, 2)
    out = einsum(1e4 * q, k, v)
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(out, reference(1e4 * q, k, v), rtol=1e-3, atol=1e-4)


def test_a_query_head_reads_its_own_key_head_only():
    q, k, v = arrays(8, 2)
    before, after = einsum(q, k, v), einsum(q, k, v.at[:, 1].add(1.0))
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    np.testing.assert_allclose(after[:, 4:], before[:, 4:] + 1.0, atol=1e-5)


def test_every_token_sees_every_other():
    q, k, v = arrays(4, 2)
    moved = jax.jacobian(lambda v: einsum(q, k, v)[0, 0, :, 0])(v)
    assert np.all(np.abs(np.asarray(moved)[:, 0, 0, :, 0]) > 0)


def test_bfloat16_keeps_its_dtype_and_softmax_its_precision():
    a = arrays(4, 2, dtype=jnp.bfloat16)
    out = einsum(*a)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), reference(*a), atol=0.04)


@pytest.mark.parametrize(
    ("h", "g", "n", "k"), [(4, 1, 128, 128), (2, 2, 256, 128), (4, 2, 128, 256)]
)
def test_the_tpu_kernel_is_the_same_function_with_the_same_gradients(h, g, n, k):
    """Interpreted: what it computes, not how fast. That a TPU program contains it is tested in tests/sharded."""
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


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_the_gpu_kernel_is_the_same_function():
    q, k, v = arrays(8, 2, 128, 128, jnp.bfloat16)
    out = attend("cudnn", *(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)
    np.testing.assert_allclose(out.astype(np.float32), reference(q, k, v), atol=0.04)


def test_each_platform_has_its_kernel_and_each_kernel_its_layout():
    assert {KERNELS[platform] for platform in ("cpu", "gpu", "tpu")} == set(HEAD_AXIS_ORDER)
    with pytest.raises(KeyError):
        attend("flash", *arrays(4, 2))
