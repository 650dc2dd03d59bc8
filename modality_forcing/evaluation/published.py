"""What others report of affine-invariant depth, to be laid beside our numbers where the protocol is the same."""

from __future__ import annotations

from typing import NamedTuple

from modality_forcing.evaluation.protocols import Protocol

SOURCE = "arXiv 2606.13676, under MoGe's protocol, affine-invariant depth"


class Reported(NamedTuple):
    """One method on one set, as fractions."""

    method: str
    absrel: float
    delta1: float


_SETS = ("nyuv2", "kitti", "eth3d", "scannet", "diode")
# AbsRel and delta1, both times 100, in the order of _SETS.
_TABLE: dict[str, tuple[tuple[float, float] | None, ...]] = {
    "MoGe-2 (discriminative)": ((2.89, 98.6), (3.75, 98.1), (2.80, 99.1), None, (3.14, 97.4)),
    "Pixel-Perfect Depth": ((3.82, 97.7), (6.57, 95.1), (4.02, 98.3), (4.04, 97.8), (4.97, 95.6)),
    "Marigold": ((4.88, 96.8), (9.05, 90.3), (4.90, 97.2), (5.89, 95.2), (6.13, 94.5)),
    "JointNet": ((11.92, 86.7), (13.74, 81.3), (12.63, 87.1), (14.81, 81.8), (20.02, 82.7)),
    "UniCon": ((8.75, 91.7), (18.67, 73.0), (8.77, 92.9), (9.23, 91.0), (13.57, 90.8)),
    "JointDiT": ((5.12, 96.9), (10.90, 88.4), (5.32, 97.0), (5.76, 96.3), (10.22, 93.9)),
    "Modality Forcing (FLUX.2)": (
        (2.52, 98.9),
        (5.37, 96.6),
        (2.37, 99.3),
        (2.32, 98.9),
        (3.35, 97.7),
    ),
}

# The paper's scaling study: the mean over these sets, at 256 px, of its from-scratch models (1.92 billion pictures).
STUDY_SETS = ("nyuv2", "diode", "eth3d", "scannet")
_STUDY = {"370M": (0.057, 0.958), "800M": (0.051, 0.963), "3.3B": (0.044, 0.971)}


def reported(benchmark: str, protocol: Protocol) -> list[Reported]:
    """Returns the published numbers of a set under a protocol: none unless it is the very one they were taken under."""
    if protocol != Protocol("moge", "affine") or benchmark not in _SETS:
        return []
    at = _SETS.index(benchmark)
    return [
        Reported(name, numbers[0] / 100, numbers[1] / 100)
        for name, row in _TABLE.items()
        if (numbers := row[at])
    ]


def reported_study(
    benchmarks: tuple[str, ...], protocol: Protocol, view: str, resolution: int
) -> list[Reported]:
    """Returns the scaling study's means over sets where these sets, protocol, view and resolution are its own."""
    same = sorted(benchmarks) == sorted(STUDY_SETS) and protocol == Protocol("moge", "affine")
    if not same or (view, resolution) != ("square", 256):
        return []
    return [
        Reported(f"Modality Forcing {size}, 1.92B pictures", *numbers)
        for size, numbers in _STUDY.items()
    ]
