"""Shardings: golden specs per size and mesh, rules that refuse collisions, no weight forgotten."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from configs import forcing, t2i
from modality_forcing.config import MeshConfig
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.train.sharding import (
    AXES,
    PRESETS,
    ShardingRules,
    local_mesh,
    make_mesh,
    param_spec,
    replicated_params,
    rule_for_param,
    tree_shardings,
)
from modality_forcing.train.state import abstract_model, init_state
from modality_forcing.tree import flatten

GOLDEN = Path(__file__).parents[2] / "golden"
MESHES = {"4x16": (4, 16, 1), "1x64": (1, 64, 1), "1x16x2": (1, 16, 2)}
SIZES = ("370m", "800m", "3b3")


def mesh(sizes: tuple[int, ...]) -> AbstractMesh:
    return AbstractMesh(sizes, AXES)


def weights(size: str) -> dict:
    config = forcing.get_config(f"size={size}")
    return abstract_model(config, base.build(config))[1]


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("size", SIZES)
def test_shardings_of_the_family_equal_the_golden_files(size, name):
    """One line per weight: shape and spec. UPDATE_GOLDEN=1 writes the files anew, for review."""
    on = mesh(MESHES[name])
    table = flatten(weights(size))

    def spec(path, leaf):
        return param_spec(PRESETS["zero2"], tuple(path.split("/")), leaf.shape, on)

    text = "".join(
        f"{path} {leaf.shape} {tuple(spec(path, leaf))}\n" for path, leaf in sorted(table.items())
    )
    golden = GOLDEN / f"shardings-{size}-{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text, "UPDATE_GOLDEN=1 pytest tests/unit/train/test_sharding.py"


@pytest.mark.parametrize("size", SIZES)
def test_only_small_vectors_are_replicated(size):
    whole = replicated_params(weights(size), PRESETS["zero2"], mesh((4, 16, 1)))
    assert next(iter(whole)).endswith("offset") and sum(whole.values()) < 2e6
    vectors = ("offset", "q_scale", "k_scale", "padding")
    assert all(path.rsplit("/")[-1] in vectors or "level_gate_cross" in path for path in whole)


def test_dimension_that_an_axis_does_not_divide_is_replicated_and_listed():
    params = {"head": {"image": {"linear": {"w": jax.ShapeDtypeStruct((6, 4), np.float32)}}}}
    assert (
        tuple(
            param_spec(PRESETS["fsdp"], ("head", "image", "linear", "w"), (6, 4), mesh((1, 4, 1)))
        )
        == ()
    )
    assert replicated_params(params, PRESETS["fsdp"], mesh((1, 4, 1))) == {
        "head/image/linear/w": 6 * 4 * 4
    }
    assert replicated_params(params, PRESETS["fsdp"], mesh((1, 3, 1))) == {}


def test_rule_that_uses_an_axis_twice_is_refused():
    with pytest.raises(ValueError, match=r"down_fd .* splits two dimensions by one axis"):
        ShardingRules(down_fd=("fsdp", ("tensor", "fsdp")))


def test_every_weight_has_exactly_one_rule_of_its_rank():
    for config in (forcing.get_config("size=370m"), t2i.get_config("encoders=none")):
        for path, leaf in flatten(abstract_model(config, base.build(config))[1]).items():
            parts = tuple(path.split("/"))
            entries = (
                getattr(PRESETS["zero2"], rule_for_param(parts, leaf.ndim)) if leaf.ndim else ()
            )
            assert len(entries) + ("layers" in parts) == leaf.ndim, path
    with pytest.raises(KeyError):
        rule_for_param(("trunk", "layers", "invented"), 3)


def test_moments_are_sharded_as_their_weights_and_counters_are_replicated():
    config = forcing.get_config("size=370m")
    _, shapes = abstract_model(config, base.build(config))
    state = jax.eval_shape(lambda p: init_state(config, p), shapes)
    on = mesh((1, 64, 1))
    placed = tree_shardings(state, PRESETS["zero2"], on)

    def specs(tree):
        return {path: s.spec for path, s in flatten(tree).items()}

    adam = placed.opt_state[1][0]
    assert specs(adam.mu) == specs(adam.nu) == specs(placed.params) == specs(placed.ema)
    assert tuple(placed.step.spec) == tuple(adam.count.spec) == ()
    assert tuple(placed.params["trunk"]["layers"]["q"].spec) == (None, "fsdp", "tensor")


def test_presets_differ_only_as_documented():
    assert PRESETS["zero2"].keep_gathered and not PRESETS["fsdp"].keep_gathered
    assert replace(PRESETS["fsdp"], keep_gathered=True) == PRESETS["zero2"]
    whole = PRESETS["replicated"]
    assert "fsdp" not in str([getattr(whole, f.name) for f in fields(whole)]) and whole.down_fd == (
        "tensor",
        None,
    )


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(data=-1, fsdp=2), (4, 2, 1)),
        (MeshConfig(data=2, tensor=2), (2, 2, 2)),
    ],
)
def test_mesh_axis_of_minus_one_takes_the_remaining_devices(config, sizes):
    assert tuple(make_mesh(config, [jax.devices()[0]] * 8).devices.shape) == sizes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), "does not fit 8 devices; set mesh.fsdp=-1"),
        (MeshConfig(data=4, fsdp=4), "data=4 fsdp=4 tensor=1 slices=1 does not fit 8 devices"),
        (MeshConfig(data=-1), "both -1"),
        (MeshConfig(slices=3), "slices=3 does not fit 8 devices"),
        (MeshConfig(slices=2), "mesh.slices is 2, the devices are of 1"),
    ],
)
def test_mesh_that_does_not_fit_the_devices_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config, [jax.devices()[0]] * 8)


def test_devices_that_cannot_share_an_example_are_counted():
    with pytest.raises(UserError, match=r"2 devices cannot share an example: here are 1; .*leave"):
        local_mesh(2)
