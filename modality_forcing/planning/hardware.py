"""Accelerators: their peaks, the TPU topologies the compiler knows, and its flags for each.

Numbers are per chip, dense, from Google's and NVIDIA's pages where no comment says otherwise.
Several peaks that circulate count 2:4 sparsity (1979 for the H100's 989): none of those is here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from modality_forcing.errors import UserError

GIB, GB, TERA = 2**30, 10**9, 10**12


@dataclass(frozen=True)
class Chip:
    """One accelerator; rates are bytes/s and FLOP/s of the whole chip.

    ici_bandwidth is what all links to other chips carry in one direction together. A slice without
    wrap-around links, or with fewer axes, has less of it, so a time from it is a lower bound.
    dcn_bandwidth is one direction too, a chip's share of its host's network. usable_bytes is what
    the compiler lets one jax device fill, of the chip's nominal hbm_bytes.
    """

    name: str
    bf16_flops: float
    hbm_bytes: float
    usable_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    device_kinds: tuple[str, ...]  # as jax.Device.device_kind says it
    devices: int = 1  # jax devices per chip: TPU7x shows its two cores
    head_dim: int = 128  # width of the matrix unit; narrower attention heads leave a part idle

    @property
    def is_tpu(self) -> bool:
        """True for chips that libtpu compiles for."""
        return self.device_kinds[0].startswith("TPU")

    def per_device(self, of_chip: float) -> float:
        """Returns one jax device's share of a number of the whole chip."""
        return of_chip / self.devices


def _tpu(
    name: str,
    tera: float,
    hbm: float,
    usable: float,
    gbs: float,
    ici: float,
    dcn: float,
    kinds: str,
    **more: int,
) -> Chip:
    gib, rates = (hbm * GIB, usable * GIB), (gbs * GB, ici * GB, dcn * GB)
    return Chip(
        name, tera * TERA, *gib, *rates, tuple(f"TPU {k}" for k in kinds.split(", ")), **more
    )


# usable: GiB that the compiler names as available when a program takes too much, by libtpu 0.0.42
# and 0.0.52 (less by 0.01); a test provokes it. ici: half of the bidirectional bandwidth that
# Google gives. dcn: Google's Gb/s per chip; of v5e the pod's 6.4 Tb/s / 256.
_TPUS = (
    #     name    TF/s  GiB usable  GB/s  ici  dcn
    _tpu("v4", 275, 32, 30.75, 1200, 300, 6.25, "v4"),  # dcn: recalled, not looked up
    _tpu("v5e", 197, 16, 15.75, 819, 200, 3.125, "v5 lite, v5e"),
    # Documented as 95 GiB; libtpu allows more than that.
    _tpu("v5p", 459, 96, 95.73, 2765, 600, 6.25, "v5, v5p"),
    _tpu("v6e", 918, 32, 31.24, 1638, 400, 12.5, "v6 lite, v6e", head_dim=256),
)
_TPU7X = Chip(  # hbm_bandwidth and ici_bandwidth: recalled, not looked up
    "tpu7x", 2307 * TERA, 192 * GIB, 94.74 * GIB, 7380 * GB, 600 * GB, 12.5 * GB, ("TPU7x",),
    devices=2, head_dim=256,
)  # fmt: skip


def _gpu(
    name: str, tera: float, hbm: float, gbs: float, nvlink: float, kinds: tuple[str, ...]
) -> Chip:
    # XLA takes a share of a GPU's memory that the user sets, so usable is nominal. dcn: one 400
    # Gb/s card a GPU.
    return Chip(name, tera * TERA, hbm * GB, hbm * GB, gbs * GB, nvlink * GB, 50 * GB, kinds)


# SXM modules only, by their exact names: PCIe cards of the same chip are slower.
_GPUS = (
    _gpu("a100", 312, 80, 2039, 300, ("NVIDIA A100-SXM4-80GB",)),  # recalled, not looked up
    _gpu("h100", 989, 80, 3350, 450, ("NVIDIA H100 80GB HBM3",)),
    _gpu("h200", 989, 141, 4800, 450, ("NVIDIA H200",)),
    _gpu("b200", 2250, 180, 8000, 900, ("NVIDIA B200",)),  # bf16_flops: recalled, not looked up
)

CHIPS: Mapping[str, Chip] = {c.name: c for c in (*_TPUS, _TPU7X, *_GPUS)}

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


def by_device_kind(kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, or None if its peak is unknown."""
    return next((c for c in CHIPS.values() if kind in c.device_kinds), None)


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

    options: dict[str, Any] = {"wrap": wrap(shape)}
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


def plan_options(chip: Chip, slices: int = 1) -> dict[str, bool | int]:
    """Returns the options for a program to be analyzed: those that do not hide collectives."""
    return dict(_COMMON) if chip.is_tpu else {}
