"""Weight-only int8: bounds of its error, and trees of it under jit, scan and shardings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from modality_forcing.config import MeshConfig, ModelConfig
from modality_forcing.models import int8
from modality_forcing.models.blocks import Stack
from modality_forcing.models.int8 import Int8Weight, dequantize_tree, quantize, quantize_tree
from modality_forcing.models.rope import image_positions, rotary_angles
from modality_forcing.train.sharding import PRESETS, make_mesh, tree_shardings
from modality_forcing.tree import flatten

TINY = ModelConfig(
    width=32, mlp_dim=96, num_layers=3, heads=4, kv_heads=2, head_dim=8, attention="einsum"
)
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=5), elements=FINITE))
def test_error_is_at_most_half_a_step_of_the_channel(weight):
    values, scale = int8.quantize_array(weight)
    largest = np.abs(weight).max(axis=-2, keepdims=True)
    assert scale.shape == (*weight.shape[:-2], 1, weight.shape[-1])
    np.testing.assert_allclose(scale, np.maximum(largest / 127, int8._LEAST), rtol=1e-6)
    assert np.abs(values.astype(int)).max() <= 127
    error = np.abs(values * np.float64(scale) - weight)
    assert np.all(error <= scale * (0.5 + 1e-4))


def test_device_and_host_give_the_same_numbers():
    weight = np.random.default_rng(0).normal(size=(3, 40, 24)).astype(jnp.bfloat16)
    weight[:, :, 3] = 0  # a channel of zeros
    on_device = jax.jit(quantize)(jnp.asarray(weight))
    values, scale = int8.quantize_array(weight)
    np.testing.assert_array_equal(on_device.values, values)
    np.testing.assert_array_equal(on_device.scale, scale)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert not values[:, :, 3].any() and np.isfinite(1 / scale).all()


def test_int8_survives_its_own_matrix():
    """What was int8 once stays as it is."""
    weight = quantize(jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32))
    again = quantize(weight.dequantize(jnp.float32))
    np.testing.assert_array_equal(again.values, weight.values)
    np.testing.assert_allclose(again.scale, weight.scale, rtol=1e-6)


def stack() -> tuple[nnx.GraphDef, dict]:
    graph, weights = nnx.split(Stack(TINY, 3, rngs=nnx.Rngs(0)))
    return graph, nnx.to_pure_dict(weights)


def test_matrices_of_layers_alone_are_quantized():
    _, params = stack()
    params = {"trunk": params, "head": {"image": {"linear": {"w": jnp.ones((4, 4))}}}}
    quantized = flatten(quantize_tree(params))
    names = {path for path, leaf in quantized.items() if isinstance(leaf, Int8Weight)}
    assert names == {
        f"trunk/layers/{name}" for name in (["q", "k", "v", "out", "gate", "up", "down"])
    }
    assert {p: x.shape for p, x in quantized.items()} == {
        p: x.shape for p, x in flatten(params).items()
    }
    again = flatten(quantize_tree(quantize_tree(params)))
    assert all(again[name].values.dtype == jnp.int8 for name in names)


def test_stacks_run_on_quantized_weights():
    """As on the matrices that the integers stand for, and close to the original ones."""
    graph, params = stack()
    params["layers"]["offset"] = jax.random.normal(jax.random.key(2), (3, 96)) / 3
    quantized = quantize_tree(params)
    angles = jnp.asarray(rotary_angles(image_positions(0, (2, 3)), 8, 10.0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 32))

    @jax.jit
    def run(params):
        return nnx.merge(graph, params)(x, jnp.zeros((2, 1, 96)), (0,), angles)

    exact, rounded = run(params), run(quantized)
    np.testing.assert_allclose(rounded, run(dequantize_tree(quantized, jnp.float32)), atol=1e-5)
    error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean((exact - x) ** 2))
    assert 1e-4 < error < 0.02


def test_shardings_follow_the_matrix():
    """Those of a tree of int8, and those in which a file is read."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    tree = jax.eval_shape(lambda: quantize_tree({"trunk": stack()[1]}))
    found = tree_shardings(tree, PRESETS["zero2"], mesh)["trunk"]["layers"]["out"]
    assert found.values.spec == PartitionSpec(None, ("tensor", "fsdp"))
    assert found.values.mesh is mesh
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    assert int8.scale_sharding(split).spec == PartitionSpec(None, None, "tensor")  # pyright: ignore[reportAttributeAccessIssue]
    alone = SingleDeviceSharding(jax.devices()[0])
    assert int8.scale_sharding(alone) is alone


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_products_are_rounded_once(dtype):
    weight = Int8Weight(np.array([[3], [-127]], np.int8), np.array([[0.1]], np.float32))
    expected = np.array([[3], [-127]], np.float32) * np.float32(0.1)
    found = dequantize_tree({"a": weight, "b": np.ones(2)}, dtype)
    np.testing.assert_array_equal(found["a"], expected.astype(dtype))
    assert found["a"].dtype == dtype and found["b"].dtype == np.float64
