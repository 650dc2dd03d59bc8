"""Blocks: the formula, identities at the start, and remat and unrolling that change nothing."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.models.attention import einsum
from modality_forcing.models.blocks import Block, Stack, broadcast_modulation
from modality_forcing.models.layers import rms_norm
from modality_forcing.models.presets import block_parameters
from modality_forcing.models.rope import apply_rope, image_positions, rotary_angles
from tests import tiny

C = tiny.MODEL
D, DEPTH, N = C.width, 3, 6
X = jax.random.normal(jax.random.key(0), (2, N, D))
M = 0.5 * jax.random.normal(jax.random.key(1), (2, 2, 3 * D))
SEGMENTS = (0, 4)  # four tokens at one level, two at another
REMAT = ("none", "elementwise", "full")
ANGLES = jnp.asarray(rotary_angles(image_positions(0, (2, 3)), C.head_dim, C.rope_theta))


@pytest.fixture(scope="module")
def perturbed() -> dict:
    """Weights of a stack of three, none of them at its start."""
    _, weights = nnx.split(Stack(C, DEPTH, rngs=nnx.Rngs(0)))
    return tiny.perturbed(nnx.to_pure_dict(weights), scale=0.1)


def stack(weights: dict, **changes) -> Stack:
    shape = nnx.eval_shape(lambda: Stack(replace(C, **changes), DEPTH, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(shape)[0], weights)


def run(weights: dict, modulation=M, **changes) -> jax.Array:
    return stack(weights, **changes)(X, modulation, SEGMENTS, ANGLES)


def test_block_equals_its_formula(perturbed):
    weights = {n: x[0] for n, x in perturbed["layers"].items()}
    w = {n: np.asarray(x, np.float64) for n, x in weights.items()}
    block = nnx.merge(nnx.split(Block(C, rngs=nnx.Rngs(0)))[0], weights)
    x, m = np.asarray(X, np.float64), np.repeat(np.asarray(M, np.float64), [4, 2], axis=1)

    def norm(a):
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)

    def heads(a, h):
        return jnp.asarray(a.reshape(2, N, h, C.head_dim).swapaxes(1, 2), jnp.float32)

    shift, scale, gate = np.split(m + w["offset"], 3, axis=-1)
    y = norm(x) * (1 + scale) + shift
    q = rms_norm(heads(y @ w["q"], C.heads), jnp.asarray(weights["q_scale"]))
    k = rms_norm(heads(y @ w["k"], C.kv_heads), jnp.asarray(weights["k_scale"]))
    q, k = apply_rope(q, ANGLES) * C.head_dim**-0.5, apply_rope(k, ANGLES)
    mixed = np.asarray(einsum(q, k, heads(y @ w["v"], C.kv_heads)), np.float64)
    mixed = mixed.swapaxes(1, 2).reshape(2, N, -1) @ w["out"]
    up, gated = y @ w["up"], y @ w["gate"]
    mixed = mixed + (gated / (1 + np.exp(-gated)) * up) @ w["down"]  # in parallel, from the same y
    out = block(X, M, SEGMENTS, ANGLES)
    np.testing.assert_allclose(out, x + gate * norm(mixed), rtol=2e-4, atol=2e-4)


def test_block_with_a_zero_gate_is_the_identity(perturbed):
    layers = {**perturbed["layers"], "offset": jnp.zeros_like(perturbed["layers"]["offset"])}
    modulation = M.at[..., 2 * D :].set(0.0)  # (shift, scale, gate)
    np.testing.assert_array_equal(run({"layers": layers}, modulation), X)


def test_fresh_stack_adds_no_modulation():
    fresh = Stack(C, DEPTH, rngs=nnx.Rngs(0))
    assert not np.any(fresh.layers.offset[...])
    np.testing.assert_array_equal(fresh(X, jnp.zeros_like(M), SEGMENTS, ANGLES), X)
    assert not np.allclose(fresh(X, M, SEGMENTS, ANGLES), X)


def test_each_layer_has_its_own_offset(perturbed):
    offset = perturbed["layers"]["offset"].at[1].add(1.0)
    moved = {**perturbed["layers"], "offset": offset}
    assert not np.allclose(run({"layers": moved}), run(perturbed))


def test_layers_start_from_different_weights():
    q = np.asarray(Stack(C, DEPTH, rngs=nnx.Rngs(0)).layers.q[...])
    assert q.shape == (DEPTH, D, C.heads * C.head_dim)
    assert np.all(np.abs(q[0] - q[1]).max() > 0.1)
    assert q.std() == pytest.approx(D**-0.5, rel=0.1)  # the fan-in is d, not d x layers


def test_scan_equals_blocks_one_after_another(perturbed):
    graph = nnx.split(Block(C, rngs=nnx.Rngs(0)))[0]
    x = X
    for i in range(DEPTH):
        weights = jax.tree.map(lambda w, i=i: w[i], perturbed["layers"])
        x = nnx.merge(graph, weights)(x, M, SEGMENTS, ANGLES)
    np.testing.assert_allclose(run(perturbed), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unroll", [2, 3, 99])
def test_unrolling_changes_nothing(perturbed, unroll):
    out = run(perturbed, unroll=unroll)
    np.testing.assert_allclose(out, run(perturbed), rtol=1e-5, atol=1e-5)


def gradient(weights: dict, remat: str):
    return jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(run(w, remat=remat)))))(weights)


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_remat_changes_no_gradient(perturbed, remat):
    ours, plain = gradient(perturbed, remat), gradient(perturbed, "none")
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, plain)


@pytest.mark.parametrize("remat", REMAT)
def test_remat_is_in_the_program(perturbed, remat):
    """Policies that all saved everything would agree too."""
    text = str(jax.make_jaxpr(jax.grad(lambda w: jnp.sum(run(w, remat=remat))))(perturbed))
    assert ("remat" in text or "checkpoint" in text) == (remat != "none")


def test_each_token_has_the_modulation_of_its_segment():
    rows = jnp.arange(6.0).reshape(1, 3, 2)
    out = broadcast_modulation(rows, (0, 2, 3), 5)
    np.testing.assert_array_equal(out[0], np.asarray(rows)[0][[0, 0, 1, 2, 2]])


def test_block_parameters_counts_the_matrices():
    layers = Stack(C, 1, rngs=nnx.Rngs(0)).layers
    matrices = (layers.q, layers.k, layers.v, layers.gate, layers.up, layers.out, layers.down)
    assert sum(w[...].size for w in matrices) == block_parameters(C)


def test_bfloat16_stays_bfloat16(perturbed):
    out = stack(perturbed)(X.astype(jnp.bfloat16), M, SEGMENTS, ANGLES)
    assert out.dtype == jnp.bfloat16
    # A block computed in float32 by accident would agree far better than rounding allows.
    difference = np.abs(np.asarray(out, np.float32) - np.asarray(run(perturbed)))
    assert 1e-3 < difference.max() < 0.5
