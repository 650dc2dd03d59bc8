"""TPU topologies that the compiler supports, and its flags for each chip."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from modality_forcing.chips import CHIPS, Chip
from modality_forcing.errors import UserError

_SQUARE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_CUBE = (*_SMALL_CUBE, "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
# Lets libtpu describe chips that are not attached, in several processes at once.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # else asks Google's metadata server, which is not there
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # else libtpu warns that it is missing; any value will do
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process that compiles is aborted
}
# Slices that Google sells and libtpu makes here, chips per axis; more shapes may resolve.
TOPOLOGIES: Mapping[str, tuple[str, ...]] = {
    "v4": _CUBE,
    "v5e": _SQUARE,
    "v5p": (*_CUBE, "16x16x16"),
    "v6e": _SQUARE,
    "tpu7x": ("1x1x1", *_CUBE, "16x16x16"),
}


def parse(spec: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the chips per axis of "v5p:4x4x4".

    Raises UserError for a topology that is not known to work.
    """
    name, _, shape = spec.partition(":")
    if name not in TOPOLOGIES:
        raise UserError(
            f"unknown TPU {name!r} in topology {spec!r}",
            hint=f"known: {', '.join(TOPOLOGIES)}, as in v5p:4x4x4",
        )
    if shape not in TOPOLOGIES[name]:
        hint = f"these work: {', '.join(f'{name}:{s}' for s in TOPOLOGIES[name])}"
        raise UserError(f"unknown shape {shape!r} in topology {spec!r}", hint=hint)
    return CHIPS[name], tuple(map(int, shape.split("x")))


def topology(spec: str, slices: int = 1) -> list[Any]:
    """Returns the jax devices of slices such as "v5p:4x4x4", which need not be attached.

    Sets environment variables that keep libtpu from looking for real TPUs, unless they are set. A
    libtpu newer than the one jax was made with may compile programs that jax cannot read back
    (`RET_CHECK failure`): install it through jax[tpu]. Raises UserError for an unknown topology,
    fewer than one slice, and where libtpu is not installed.
    """
    chip, shape = parse(spec)
    if slices < 1:
        raise UserError(f"{slices} slices of {spec}", hint="there must be at least 1")
    if importlib.util.find_spec("libtpu") is None:
        hint = f'no TPU is needed, but: pip install "jax[tpu]=={metadata.version("jax")}"'
        raise UserError("compiling for a TPU needs its compiler, libtpu", hint=hint)
    for name, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, object] = {"wrap": wrap(shape)}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # else its two cores are two devices
    if max(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts have 2 x 2 otherwise
    if slices > 1:
        options["num_slices"] = slices
    return list(topologies.get_topology_desc(spec, "tpu", **options).devices)


def wrap(shape: tuple[int, ...]) -> tuple[bool, bool, bool]:
    """Returns which axes of a slice close to a ring.

    In 3D, those of full cubes of 4; in 2D, those of 16 chips, the size of the pod.
    """
    if len(shape) == 3:
        closed = all(n % 4 == 0 for n in shape)
        return closed, closed, closed
    return shape[0] == 16, shape[1] == 16, False


Options = Mapping[str, bool | int]

# Collective matmuls (windowed einsum) break the gather of a weight into permutes between chips,
# which neither overlap as well at these widths nor can be counted.
_COMMON: Options = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}
# Parts of a gather run inside matmuls. libtpu 0.0.42 takes it for other chips too; 0.0.52 refuses
# that, naming wrong results.
_FUSED_GATHERS: Options = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}
# Collectives run on the SparseCores, next to the matmuls. One that is fused cannot.
_SPARSE_CORES: Options = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_enable_all_gather_offload_tracing": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
}
XLA_FLAGS: Mapping[str, Options] = {
    "v4": _COMMON,
    "v5e": _COMMON | _FUSED_GATHERS,
    "v5p": _COMMON | _SPARSE_CORES,
    "v6e": _COMMON
    | _SPARSE_CORES
    | {"xla_tpu_scoped_vmem_limit_kib": 98_304},  # of 128 MiB: larger tiles in one fusion
    "tpu7x": _COMMON | _SPARSE_CORES,
}
# The sum of gradients over slices starts as soon as they are there, not at the end of the step.
MULTI_SLICE_FLAGS: Options = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}


def compiler_options(chip: Chip, slices: int = 1) -> dict[str, bool | int]:
    """Returns the options of `lowered.compile(compiler_options=...)` for a chip; none for a GPU.

    Names and groups are MaxText's; a test has the installed libtpu accept each of them.
    """
    if not chip.is_tpu:
        return {}
    return {**XLA_FLAGS[chip.name], **(MULTI_SLICE_FLAGS if slices > 1 else {})}


def libtpu_init_args(chip: Chip, slices: int = 1) -> str:
    """Returns the same options as the value of LIBTPU_INIT_ARGS; "" for a GPU."""
    written = {name: str(value).lower() for name, value in compiler_options(chip, slices).items()}
    return " ".join(f"--{name}={value}" for name, value in written.items())


def plan_options(chip: Chip) -> dict[str, bool | int]:
    """Returns the options for a program to be analyzed: those that do not hide collectives."""
    return dict(_COMMON) if chip.is_tpu else {}
