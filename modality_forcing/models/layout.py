"""Which mesh axes split which dimension of an activation, by the dimension's letter."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

# Other dimensions are not split. train/sharding.py decides how weights are stored between steps.
AXES = {"b": ("data", "fsdp"), "h": "tensor", "g": "tensor", "f": "tensor"}


def spec(letters: str) -> PartitionSpec:
    """Returns the partition of an array whose dimensions have these letters, such as "bnd"."""
    return PartitionSpec(*(AXES.get(letter) for letter in letters))


def is_sharded() -> bool:
    """Returns True if a mesh of more than one device is set."""
    return jax.sharding.get_abstract_mesh().size > 1


def devices(axis: str) -> int:
    """Returns the number of devices along an axis of the mesh, 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def constrain(x: Array, letters: str) -> Array:
    """Splits an array over the mesh; does nothing on one device."""
    return jax.lax.with_sharding_constraint(x, spec(letters)) if is_sharded() else x
