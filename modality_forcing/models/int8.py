"""Weight-only int8: block matrices as integers with one scale for each output channel.

An `Int8Weight` takes the place of a matrix in a tree of weights. It is a pytree of two arrays that
have the matrix's layers in front, so that `jit`, `scan` and shardings treat it as weights; stacks
make one layer at a time a matrix again (`dequantize_tree`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from modality_forcing.config import MATRICES
from modality_forcing.safetensors_io import copy_blocks
from modality_forcing.tree import Tree

_UNIT = np.float32(1 / 127)  # factors: XLA divides by constants in its own way
_LEAST = float(np.finfo(np.float32).tiny)  # of a scale: no division by 0, nor by a subnormal
T = TypeVar("T")
M = TypeVar("M", bound=Tree)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Weight:
    """A matrix, or one for each layer: values * scale.

    values: int8 [..., in, out]. scale: float32 [..., 1, out], so that its axes are sharded by the
    rules of the values' axes. In trees of shapes or shardings, each is one of those.
    """

    values: PyTree
    scale: PyTree

    @property
    def shape(self) -> tuple[int, ...]:
        """The matrix's shape."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of the matrix's axes."""
        return self.values.ndim

    @property
    def size(self) -> int:
        """The number of the matrix's elements."""
        return self.values.size

    @property
    def dtype(self) -> jnp.dtype:
        """int8."""
        return self.values.dtype

    def dequantize(self, dtype: DTypeLike) -> Float[Array, "*layers i o"]:
        """Returns the matrix; the product is rounded to dtype once."""
        return (jnp.asarray(self.values, jnp.float32) * self.scale).astype(dtype)


def is_quantized(path: str) -> bool:
    """Returns whether a weight of this path, such as "trunk/layers/q", becomes an Int8Weight."""
    *owners, last = path.split("/")
    return "layers" in owners and last in MATRICES


def quantize(weight: Float[Array, "*layers i o"]) -> Int8Weight:
    """Returns a matrix in int8; no value is off by more than half its channel's scale.

    The scale of an output channel is its largest magnitude / 127.
    """
    exact = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(exact), axis=-2, keepdims=True) * _UNIT, _LEAST)
    return Int8Weight(jnp.round(exact * (1 / scale)).astype(jnp.int8), scale)


def quantize_array(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`quantize` of an array [..., in, out] of the host: values and scale, the same numbers."""
    exact = np.empty(weight.shape, np.float32)
    copy_blocks(exact, weight)
    high, low = exact.max(axis=-2, keepdims=True), exact.min(axis=-2, keepdims=True)
    largest = np.maximum(high, -low)
    scale = np.maximum(largest * _UNIT, np.float32(_LEAST))
    np.multiply(exact, 1 / scale, out=exact)
    return np.rint(exact, out=exact).astype(np.int8), scale


def quantize_tree(params: M) -> M:
    """Returns a tree of weights with its stacked matrices in int8, the others as they are.

    Each matrix is quantized where it is, with its sharding, and released if nobody else holds it.
    """
    return cast(M, _quantized(params, ""))


def _quantized(tree: Tree, prefix: str) -> dict[str, PyTree]:
    return {
        name: _quantized(leaf, f"{prefix}{name}/")
        if isinstance(leaf, Mapping)
        else _quantize_jit(leaf)
        if is_quantized(f"{prefix}{name}") and not isinstance(leaf, Int8Weight)
        else leaf
        for name, leaf in tree.items()
    }


_quantize_jit = jax.jit(quantize)


def scale_sharding(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns the sharding of scales [..., 1, out] for that of values [..., in, out]."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    axes = [*sharding.spec]
    if len(axes) > 1:  # of layers, inputs, outputs
        axes[1] = None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*axes))


def dequantize_tree(tree: T, dtype: DTypeLike) -> T:
    """Returns a pytree with each Int8Weight as a matrix of the dtype, all else as it is."""

    def one(leaf: PyTree) -> PyTree:
        return leaf.dequantize(dtype) if isinstance(leaf, Int8Weight) else leaf

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, Int8Weight))
