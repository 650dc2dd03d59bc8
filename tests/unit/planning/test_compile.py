"""The abstract step and what is read of a compiled program; tests/sharded compiles one for TPUs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from modality_forcing.chips import CHIPS
from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.planning import compile as planning
from modality_forcing.planning import hardware
from modality_forcing.planning.compile import Bytes, Target, abstract_step, compile_lowered
from modality_forcing.train.state import TrainState
from modality_forcing.tree import flatten
from tests import tiny

GIB = 2**30


def target(name: str = "v5e", hosts: int = 2, devices: int = 8) -> Target:
    made = tuple(SimpleNamespace(process_index=i * hosts // devices) for i in range(devices))
    return Target(f"{name}:2x4", 1, CHIPS[name], (2, 4), made)


def test_chips_of_two_devices_are_counted_once():
    assert (target().chips, target("tpu7x").chips) == (8, 4)
    assert (target().hosts, target(hosts=1).hosts) == (2, 1)
    # Half of the peak of 8 chips.
    assert target().mfu(int(4 * 197e12 * 3), 3.0) == pytest.approx(0.5)
    assert target("tpu7x").mfu(int(4 * 2307e12 * 3), 3.0) == pytest.approx(1.0)


def test_donated_buffers_count_once():
    assert Bytes(100, 20, 90, 80, 3).total == 100 + 20 + (90 - 80) + 3


def test_target_has_the_devices_of_all_slices(monkeypatch):
    monkeypatch.setattr(hardware, "topology", lambda spec, slices: [spec] * 64 * slices)
    found = planning.get_target("v5p:4x4x4", 2)
    assert (found.chip, found.shape, found.slices) == (CHIPS["v5p"], (4, 4, 4), 2)
    assert found.devices == ("v5p:4x4x4",) * 128 and found.chips == 128


# ---- The step of shapes


def shapes_of(config: Config) -> tuple[TrainState, Any, Any]:
    return abstract_step(config, tuple(jax.devices()[:1]))[1]


def test_arguments_are_those_that_the_step_takes():
    config = tiny.t2i()
    function, (state, batch, teacher), mesh = abstract_step(config, tuple(jax.devices()[:1]))
    assert teacher is None and mesh.size == 1
    assert {leaf.shape[0] for leaf in jax.tree.leaves(batch)} == {config.train.batch}
    after, metrics = jax.eval_shape(function, state, batch, teacher_params=None)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert "loss" in metrics


def test_teacher_is_the_network_of_the_primary_modality_alone():
    config = tiny.forcing(distill=True, frozen_dtype="bfloat16")
    state, _, teacher = shapes_of(config)
    alone, _, none = shapes_of(tiny.t2i())
    assert none is None
    assert flatten(teacher).keys() == flatten(alone.params).keys()
    assert teacher["trunk"]["layers"]["q"].dtype == jnp.bfloat16
    assert flatten(state.params).keys() > flatten(teacher).keys()


def test_teacher_shares_the_frozen_weights_of_the_student():
    config = tiny.forcing(distill=True, freeze=("trunk",))
    state, _, teacher = shapes_of(config)
    frozen = flatten(state.frozen).keys()
    assert frozen and not frozen & flatten(teacher).keys()


def test_mesh_that_does_not_fit_the_devices_is_refused():
    config = tiny.t2i()
    with pytest.raises(UserError, match=r"does not fit 1 devices"):
        shapes_of(replace(config, mesh=replace(config.mesh, fsdp=3)))


def test_bytes_of_a_device_are_those_of_its_shards():
    mesh = AbstractMesh((4,), ("fsdp",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["fsdp"], []))
    tree = {
        "w": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=split),
        "b": jax.ShapeDtypeStruct((6,), jnp.bfloat16, sharding=whole),
    }
    assert planning.device_bytes(tree) == 4 * (8 // 4) * 6 + 2 * 6


# ---- What is read of a program


class Lowered:
    """A program that takes so much memory, or that the compiler refuses."""

    def __init__(self, temporaries: int = 0, error: str = ""):
        self.temporaries, self.error, self.options = temporaries, error, None

    def compile(self, compiler_options: dict[str, Any]) -> Any:
        self.options = compiler_options
        if self.error:
            raise jax.errors.JaxRuntimeError(self.error)
        sizes = {"argument": 5 * GIB, "temp": self.temporaries, "output": 4 * GIB, "alias": 3 * GIB}
        sizes["generated_code"] = 7
        memory = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
        analysis = SimpleNamespace(**memory)
        return SimpleNamespace(memory_analysis=lambda: analysis, as_text=lambda: "HloModule step")


def test_program_fits_if_it_takes_what_the_compiler_lets_it_fill():
    usable = int(CHIPS["v5e"].usable_bytes)
    rest = usable - (5 + 4 - 3) * GIB - 7
    for temporaries, fits in ((rest, True), (rest + 1, False)):
        lowered = Lowered(temporaries)
        found = compile_lowered(lambda lowered=lowered: lowered, target(), 5 * GIB, 3 * GIB)
        assert found.bytes == Bytes(5 * GIB, temporaries, 4 * GIB, 3 * GIB, 7)
        assert found.fits == fits and found.text == "HloModule step"
        assert lowered.options == hardware.plan_options(CHIPS["v5e"])


TOO_MUCH = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
TOO_MUCH += "temporaries ({}) exceeds available HBM (15.75G)."


@pytest.mark.parametrize(
    ("message", "used"),
    [
        (TOO_MUCH.format("21.25G"), 21.25 * GIB),
        (TOO_MUCH.format("1.5T"), 1536 * GIB),
        ("Ran out of memory in memory space hbm. Used 31.50G of 15.75G hbm.", 31.5 * GIB),
    ],
)
def test_program_that_is_refused_for_its_size_does_not_fit(message, used):
    """Arguments are a part of the number that the compiler names."""
    found = compile_lowered(lambda: Lowered(error=message), target(), 2 * GIB, GIB)
    assert not found.fits and found.text == ""
    assert found.bytes == Bytes(2 * GIB, int(used) - 2 * GIB, GIB, GIB)
    assert found.bytes.total == used


def test_other_errors_of_the_compiler_are_raised():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RET_CHECK"):
        compile_lowered(lambda: Lowered(error="RET_CHECK failure"), target(), GIB)
