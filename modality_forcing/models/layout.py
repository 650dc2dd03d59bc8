"""Which mesh axes split which dimension of a tensor in flight, by the letter of the dimension."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

# Every other dimension is whole on each device. How weights are kept between steps is train/sharding.py's business.
AXES = {"b": ("data", "fsdp"), "h": "tensor", "g": "tensor", "f": "tensor"}


def spec(letters: str) -> PartitionSpec:
    """Returns the partition of an array whose dimensions have these letters, such as "bnd"."""
    return PartitionSpec(*(AXES.get(letter) for letter in letters))


def spread_out() -> bool:
    """Says whether a mesh of more than one device is set."""
    return jax.sharding.get_abstract_mesh().size > 1


def devices(axis: str) -> int:
    """Returns the number of devices along an axis of the mesh that is set, 1 where there is none."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def constrain(x: Array, letters: str) -> Array:
    """Lays an array out over the mesh that is set; does nothing where there is one device."""
    return jax.lax.with_sharding_constraint(x, spec(letters)) if spread_out() else x
