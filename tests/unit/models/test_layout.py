"""Letters to mesh axes; nothing happens where there is one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from modality_forcing.models.layout import constrain, devices, is_sharded, spec
from modality_forcing.train.sharding import AXES


def test_examples_are_split_over_two_axes_and_heads_over_tensor():
    assert spec("bnd") == PartitionSpec(("data", "fsdp"), None, None)
    assert spec("bhnk") == PartitionSpec(("data", "fsdp"), "tensor", None, None)
    assert spec("df") == PartitionSpec(None, "tensor")


def test_without_a_mesh_arrays_keep_their_layout():
    x = jnp.ones((2, 3))
    assert constrain(x, "bd") is x and not is_sharded() and devices("fsdp") == 1


def test_current_mesh_is_visible_while_tracing():
    def traced(x):
        with jax.sharding.use_abstract_mesh(
            AbstractMesh((2, 4, 1), AXES, axis_types=(AxisType.Auto,) * 3)
        ):
            assert is_sharded() and devices("fsdp") == 4
            return constrain(x, "bd")

    assert "sharding_constraint" in str(jax.make_jaxpr(traced)(jnp.ones((8, 3))))
