"""Blocks: the stated formula, identities at the start, and the same stack however it is computed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.models.attention import einsum
from modality_forcing.models.blocks import Block, Stack, spread
from modality_forcing.models.layers import rms_norm
from modality_forcing.models.presets import block_parameters
from modality_forcing.models.rope import image_positions, rotary_angles, rotate
from tests import tiny

C = tiny.MODEL
D, DEPTH, N = C.width, 3, 6
X, M = (
    jax.random.normal(jax.random.key(0), (2, N, D)),
    0.5 * jax.random.normal(jax.random.key(1), (2, 2, 3 * D)),
)
SEGMENTS, REMAT = (
    (0, 4),
    ("none", "elementwise", "full"),
)  # four tokens at one level, two at another
ANGLES = jnp.asarray(rotary_angles(image_positions(0, (2, 3)), C.head_dim, C.rope_theta))


@pytest.fixture(scope="module")
def shaken() -> dict:
    """Weights of a stack of three, none of them at its start."""
    _, weights = nnx.split(Stack(C, DEPTH, rngs=nnx.Rngs(0)))
    return tiny.shaken(nnx.to_pure_dict(weights), scale=0.1)


def stack(weights: dict, **changes) -> Stack:
    graph = nnx.split(
        nnx.eval_shape(lambda: Stack(replace(C, **changes), DEPTH, rngs=nnx.Rngs(0)))
    )[0]
    return nnx.merge(graph, weights)


def test_a_block_is_its_formula(shaken):
    w = {n: np.asarray(x[0], np.float64) for n, x in shaken["layers"].items()}
    block = nnx.merge(
        nnx.split(Block(C, rngs=nnx.Rngs(0)))[0], {n: x[0] for n, x in shaken["layers"].items()}
    )
    x, m = np.asarray(X, np.float64), np.repeat(np.asarray(M, np.float64), [4, 2], axis=1)
    norm = lambda a: a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)
    shift, scale, gate = np.split(m + w["offset"], 3, axis=-1)
    y = norm(x) * (1 + scale) + shift
    heads = lambda a, h: jnp.asarray(a.reshape(2, N, h, C.head_dim).swapaxes(1, 2), jnp.float32)
    turned = lambda a, n, scale: rotate(rms_norm(heads(a, n), shaken["layers"][scale][0]), ANGLES)
    q, k = (
        turned(y @ w["q"], C.heads, "q_scale") * C.head_dim**-0.5,
        turned(y @ w["k"], C.kv_heads, "k_scale"),
    )
    mixed = einsum(q, k, heads(y @ w["v"], C.kv_heads))
    mixed = np.asarray(mixed, np.float64).swapaxes(1, 2).reshape(2, N, -1) @ w["out"]
    up, gated = y @ w["up"], y @ w["gate"]
    mixed = (
        mixed + (gated / (1 + np.exp(-gated)) * up) @ w["down"]
    )  # in parallel: both from the same y
    np.testing.assert_allclose(
        block(X, M, SEGMENTS, ANGLES), x + gate * norm(mixed), rtol=2e-4, atol=2e-4
    )


def test_without_a_gate_a_block_changes_nothing_whatever_its_weights(shaken):
    layers = {**shaken["layers"], "offset": np.zeros_like(shaken["layers"]["offset"])}
    m = M.at[..., 2 * D :].set(0.0)  # (shift, scale, gate)
    np.testing.assert_array_equal(stack({"layers": layers})(X, m, SEGMENTS, ANGLES), X)


def test_a_fresh_stack_adds_no_modulation_of_its_own():
    fresh = Stack(C, DEPTH, rngs=nnx.Rngs(0))
    assert not np.any(fresh.layers.offset[...])
    np.testing.assert_array_equal(fresh(X, jnp.zeros_like(M), SEGMENTS, ANGLES), X)
    assert not np.allclose(fresh(X, M, SEGMENTS, ANGLES), X)


def test_a_layer_s_offset_is_its_own(shaken):
    moved = {**shaken["layers"], "offset": shaken["layers"]["offset"].copy()}
    moved["offset"][1] += 1.0
    assert not np.allclose(
        stack({"layers": moved})(X, M, SEGMENTS, ANGLES), stack(shaken)(X, M, SEGMENTS, ANGLES)
    )


def test_layers_start_from_different_weights():
    q = np.asarray(Stack(C, DEPTH, rngs=nnx.Rngs(0)).layers.q[...])
    assert q.shape == (DEPTH, D, C.heads * C.head_dim)
    assert np.all(np.abs(q[0] - q[1]).max() > 0.1)
    assert q.std() == pytest.approx(D**-0.5, rel=0.1)  # the fan-in is d, not d x layers


def test_the_scan_is_the_blocks_one_after_another(shaken):
    graph = nnx.split(Block(C, rngs=nnx.Rngs(0)))[0]
    x = X
    for i in range(DEPTH):
        x = nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], shaken["layers"]))(
            x, M, SEGMENTS, ANGLES
        )
    np.testing.assert_allclose(stack(shaken)(X, M, SEGMENTS, ANGLES), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unroll", [2, 3, 99])
def test_unrolling_changes_nothing(shaken, unroll):
    out = stack(shaken, unroll=unroll)(X, M, SEGMENTS, ANGLES)
    np.testing.assert_allclose(out, stack(shaken)(X, M, SEGMENTS, ANGLES), rtol=1e-5, atol=1e-5)


def gradient(weights: dict, remat: str):
    return jax.jit(
        jax.grad(lambda w: jnp.sum(jnp.sin(stack(w, remat=remat)(X, M, SEGMENTS, ANGLES))))
    )(weights)


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_what_is_recomputed_changes_no_gradient(shaken, remat):
    told, plain = gradient(shaken, remat), gradient(shaken, "none")
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), told, plain)


@pytest.mark.parametrize("remat", REMAT)
def test_recomputing_really_happens(shaken, remat):
    """Remat policies that all saved everything would agree too: count what the backward pass does again."""
    text = str(
        jax.make_jaxpr(jax.grad(lambda w: jnp.sum(stack(w, remat=remat)(X, M, SEGMENTS, ANGLES))))(
            shaken
        )
    )
    assert ("remat" in text or "checkpoint" in text) == (remat != "none")


def test_each_token_follows_its_own_level():
    levels = jnp.arange(6.0).reshape(1, 3, 2)
    told = spread(levels, (0, 2, 3), jnp.zeros((1, 5, 2)))
    np.testing.assert_array_equal(told[0], np.asarray(levels)[0][[0, 0, 1, 2, 2]])


def test_block_parameters_counts_the_matrices():
    layers = Stack(C, 1, rngs=nnx.Rngs(0)).layers
    matrices = (layers.q, layers.k, layers.v, layers.gate, layers.up, layers.out, layers.down)
    assert sum(w[...].size for w in matrices) == block_parameters(C)


def test_bfloat16_stays_bfloat16(shaken):
    out = stack(shaken)(X.astype(jnp.bfloat16), M, SEGMENTS, ANGLES)
    assert out.dtype == jnp.bfloat16
    # A block computed in float32 by accident would agree far better than rounding allows.
    difference = np.abs(
        np.asarray(out, np.float32) - np.asarray(stack(shaken)(X, M, SEGMENTS, ANGLES))
    )
    assert 1e-3 < difference.max() < 0.5
