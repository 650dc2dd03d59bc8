"""The known benchmarks: number of images, size, unit, and where they are found on disk."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from modality_forcing.errors import UserError


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a benchmark with ground truth; all arrays have the size stored on disk."""

    name: str
    image: np.ndarray  # u8 [h w 3]
    depth: np.ndarray  # f32 [h w], z-depth in the set's unit; 0 where not valid
    # bool [h w], where the depth is known and, in a native layout, scored by its protocol.
    valid: np.ndarray
    # f32 [3 3], normalized: fx / w, fy / h, cx / w, cy / h; None if the layout has none. Pixel
    # values are divided as the source gives them: the half pixel between "first center at 0" and
    # "at 0.5" is ignored.
    intrinsics: np.ndarray | None


@dataclass(frozen=True)
class Benchmark:
    """The fixed properties of a benchmark.

    Sizes, folders and units are those of MoGe's evaluation (microsoft/MoGe,
    configs/eval/all_benchmarks.json, and its bundles Ruicheng/monocular-geometry-evaluation); depth
    ranges and native counts those of Marigold's (prs-eth/Marigold, src/dataset). Each set has its
    own license, several for research only: see the source.
    """

    name: str
    title: str
    source: str  # the authors
    folder: str  # the folder that its bundle unpacks to
    size: tuple[int, int]  # (width, height) of MoGe's evaluation
    metric: bool  # depth is in meters; otherwise in a unit of its own
    num_images: int | None  # of the official list; None where no count could be confirmed
    # Lines of the bundle's index. None: not confirmed (for ETH3D and DIODE sources differ by one),
    # and the index alone defines the set.
    num_bundle_images: int | None
    indexes: tuple[str, ...] = (".index.txt",)  # the first one in the bundle lists its frames
    # Meters to which Marigold's protocol clips predictions. The readers do not apply it.
    depth_range: tuple[float, float] | None = None
    # Marigold also masks depth outside the range; for DIODE only the set's own mask counts.
    range_masks_target: bool = False
    align_max_side: int | None = None  # Marigold's --alignment_max_res


_KNOWN = (
    Benchmark(
        "nyuv2", "NYUv2", "Silberman et al. 2012", "NYUv2", (640, 480), True, 654, 654,
        (".test.txt", ".index.txt"), (1e-3, 10.0), True,
    ),
    Benchmark(
        "kitti", "KITTI", "Geiger et al. 2013, Uhrig et al. 2017; test split of Eigen et al. 2014",
        "KITTI", (750, 375), True, 652, 652, depth_range=(1e-5, 80.0), range_masks_target=True,
    ),
    Benchmark(
        "eth3d", "ETH3D", "Schöps et al. 2017", "ETH3D", (2048, 1365), True,
        454, None, depth_range=(1e-5, float("inf")), range_masks_target=True, align_max_side=1024,
    ),
    Benchmark(
        "scannet", "ScanNet", "Dai et al. 2017; 800 frames of Ke et al. 2024", "ScanNet",
        (640, 480), True, 800, 800, depth_range=(1e-3, 10.0), range_masks_target=True,
    ),
    Benchmark(
        "diode", "DIODE", "Vasiljevic et al. 2019", "DIODE", (1024, 768), True,
        771, None, depth_range=(0.6, 350.0),
    ),
    Benchmark("ibims1", "iBims-1", "Koch et al. 2018", "iBims-1", (640, 480), True, 100, 100),
    Benchmark("gso", "GSO", "Downs et al. 2022", "GSO", (512, 512), False, 1030, 1030),
    Benchmark("sintel", "Sintel", "Butler et al. 2012", "Sintel", (872, 436), False, 1064, 1064),
    Benchmark("ddad", "DDAD", "Guizilini et al. 2020", "DDAD", (1400, 700), True, 1000, 1000),
    Benchmark("spring", "Spring", "Mehl et al. 2023", "Spring", (1920, 1080), False, None, None),
    Benchmark("hammer", "HAMMER", "Jung et al. 2022", "HAMMER", (1664, 832), True, None, None),
)  # fmt: skip

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {benchmark.name: benchmark for benchmark in _KNOWN}
)


def find_benchmark(name: str) -> Benchmark:
    """Returns a benchmark by name; raises UserError with the nearest and all known names."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1)
    guess = f"did you mean {near[0]}? Known" if near else "known"
    hint = f"{guess} are {', '.join(BENCHMARKS)}"
    raise UserError(f"no benchmark is called {name!r}", hint=hint)
