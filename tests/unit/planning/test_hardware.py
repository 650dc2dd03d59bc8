"""Chips against the compiler: topologies, memory, and every flag is accepted."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modality_forcing import chips
from modality_forcing.errors import UserError
from modality_forcing.planning import hardware

SMALLEST = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}


def compile_for(devices, function, *shapes, options=None):
    """Compiles with the first argument's rows split over the devices and the others' columns."""
    mesh = Mesh(np.array(devices), ("x",))
    split = [
        NamedSharding(mesh, PartitionSpec("x" if i == 0 else None, None if i == 0 else "x"))
        for i in range(len(shapes))
    ]
    abstract = [
        jax.ShapeDtypeStruct(s, jnp.float32, sharding=y) for s, y in zip(shapes, split, strict=True)
    ]
    return jax.jit(function).lower(*abstract).compile(compiler_options=options)


def gradient(x, w):
    """Gathers the weight and sums the gradient, so that options for collectives meet some."""
    return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)


def test_every_tpu_has_topologies_flags_and_a_smallest_slice():
    tpus = {name for name, chip in chips.CHIPS.items() if chip.is_tpu}
    assert tpus == set(hardware.TOPOLOGIES) == set(hardware.XLA_FLAGS) == set(SMALLEST)


@pytest.mark.parametrize("spec", ["h100:8", "v5p", "v5p:4x4", "v5p:3x3x3", "v5e:4x4x4", "", ":"])
def test_unknown_topology_is_refused_with_known_ones(spec):
    with pytest.raises(UserError, match=r"known: v4, v5e|these work: v5[ep]:"):
        hardware.topology(spec)


def test_slices_are_counted_from_one():
    with pytest.raises(UserError, match="at least 1"):
        hardware.topology("v5e:2x2", slices=0)


def test_missing_libtpu_is_an_error_with_an_install_hint(monkeypatch):
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .jax.tpu.=="):
        hardware.topology("v5e:2x2")


@pytest.mark.parametrize(
    ("shape", "closed"),
    [
        ((4, 4, 4), (True, True, True)),
        ((2, 4, 4), (False, False, False)),
        ((8, 16), (False, True, False)),
        ((8, 8), (False, False, False)),
        ((16, 16), (True, True, False)),
    ],
)
def test_rings_close_on_full_axes(shape, closed):
    assert hardware.wrap(shape) == closed


def test_libtpu_init_args_equal_the_compiler_options():
    chip = chips.CHIPS["v6e"]
    written = hardware.libtpu_init_args(chip, slices=2)
    assert "--xla_tpu_scoped_vmem_limit_kib=98304" in written.split()
    assert "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=false" in written.split()
    names = [re.fullmatch(r"--(\w+)=\w+", part)[1] for part in written.split()]
    assert names == list(hardware.compiler_options(chip, slices=2))
    assert len(names) == len(hardware.compiler_options(chip)) + 2
    assert (
        hardware.compiler_options(chips.CHIPS["h200"]) == {}
        and hardware.libtpu_init_args(chips.CHIPS["h200"]) == ""
    )


class TestWithLibtpu:
    @pytest.fixture(autouse=True)
    def needs_libtpu(self):
        pytest.importorskip("libtpu")

    @pytest.mark.parametrize("name", hardware.TOPOLOGIES)
    def test_every_named_topology_resolves(self, name):
        chip = chips.CHIPS[name]
        for shape in hardware.TOPOLOGIES[name]:
            devices = hardware.topology(f"{name}:{shape}")
            assert len(devices) == chip.devices * np.prod([int(n) for n in shape.split("x")])
            assert chips.by_device_kind(devices[0].device_kind) is chip

    def test_devices_name_their_slice(self):
        devices = hardware.topology("v5e:2x2", slices=2)
        assert [d.slice_index for d in devices] == [0] * 4 + [1] * 4

    @pytest.mark.parametrize("name", SMALLEST)
    def test_compiler_accepts_every_flag(self, name):
        devices = hardware.topology(SMALLEST[name], slices=2)
        options = hardware.compiler_options(chips.CHIPS[name], slices=2)
        compiled = compile_for(devices, gradient, (128, 256), (256, 512), options=options)
        assert "collective" in compiled.as_text() or "all-" in compiled.as_text()

    def test_compiler_rejects_an_unknown_flag(self):
        options = hardware.compiler_options(chips.CHIPS["v5e"]) | {
            "xla_tpu_enable_wishful_thinking": True
        }
        with pytest.raises(Exception, match="xla_tpu_enable_wishful_thinking"):
            compile_for(
                hardware.topology("v5e:2x2"), gradient, (128, 256), (256, 512), options=options
            )

    @pytest.mark.parametrize("name", SMALLEST)
    def test_usable_memory_is_what_the_compiler_allows(self, name):
        def large(x):
            stack = jnp.broadcast_to(x, (400, *x.shape)) + jnp.arange(400.0)[:, None, None]
            # A sort is not fused: the stack must be in memory.
            return jnp.sum(jnp.sort(stack, axis=0), axis=(1, 2))

        with pytest.raises(Exception, match="Ran out of memory") as found:
            compile_for(hardware.topology(SMALLEST[name])[:1], large, (16384, 32768))
        available = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(found.value))
        assert available and float(available[1]) == pytest.approx(
            chips.CHIPS[name].usable_bytes / chips.GIB, abs=0.02
        )

    @pytest.mark.parametrize(
        ("extra", "accepted"), [("", True), ("--xla_tpu_wishful_thinking=true", False)]
    )
    def test_libtpu_accepts_its_flags_from_the_environment(self, extra, accepted):
        # Flags of all chips at once: what counts is that libtpu, which ends the process otherwise,
        # knows the names.
        written = " ".join(
            hardware.libtpu_init_args(chips.CHIPS[name], slices=2) for name in SMALLEST
        )
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": f"{written} {extra}",
        }
        code = (
            "from modality_forcing.planning import hardware; "
            "print(len(hardware.topology('v5e:2x2')))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert (done.returncode == 0 and done.stdout.split()[-1:] == ["4"]) is accepted, done.stderr
        assert (
            "Unknown command line flag 'xla_tpu_wishful_thinking'" in done.stderr
        ) is not accepted
