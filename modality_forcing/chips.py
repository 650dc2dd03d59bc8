"""Accelerators and their peaks.

Numbers are per chip, dense, from Google's and NVIDIA's pages where no comment says otherwise.
Several peaks that circulate count 2:4 sparsity (1979 for the H100's 989): none of those is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


def by_device_kind(kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, or None if its peak is unknown."""
    return next((c for c in CHIPS.values() if kind in c.device_kinds), None)
