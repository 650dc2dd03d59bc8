"""The native layouts of the five benchmarks of Marigold's evaluation, or of Marigold's archives.

The names of frames in the lists, and the files of each, below the folder:

nyuv2    test/kitchen_0004/rgb_0001: that .png, and depth_0001.png beside it in millimeters, 16
         bits: the raw depth, since the filled depth is for training. Masked by Eigen's crop, which
         excludes the white border.
kitti    2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069: that .png, and
         [train/ or val/]2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png
         in 1/256 meters, 16 bits. Both are cropped to the benchmark's 352 x 1216, and masked by
         Eigen's crop of that.
eth3d    courtyard/DSC_0286: rgb/courtyard/images/dslr_images/DSC_0286.JPG, and
         depth/courtyard_dslr_depth/courtyard/ground_truth_depth/dslr_images/DSC_0286.JPG: raw
         floats in meters, inf where unknown. Also without rgb/ and depth/courtyard_dslr_depth/, as
         eth3d.net packs it. Images are distorted: no pinhole camera.
scannet  scene0406_02/000300: scene0406_02/color/000300.jpg, and depth/000300.png in millimeters, 16
         bits, or both as 300. A larger color image is resized to its depth. The camera is
         intrinsic/intrinsic_depth.txt.
diode    indoors/scene_00021/scan_00189/00021_00189_indoors_200_010: that .png, _depth.npy in
         meters, and _depth_mask.npy, also below val/.

Depth that is 0 or not finite and positive is invalid everywhere. Source: prs-eth/Marigold,
src/dataset/*.py and data_split/; cleinc/bts, pytorch/bts_eval.py; Eigen et al. 2014. Depth ranges
are not applied here: they belong to the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from modality_forcing.data.files import read_png16
from modality_forcing.data.intrinsics import check_principal_point, rescale_intrinsics
from modality_forcing.datasets.common.formats import (
    check_same_size,
    read_array,
    read_matrix,
    read_photograph,
    read_raw_floats,
    read_rgb,
)
from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame
from modality_forcing.paths import is_file

# Image, depth, mask and intrinsics (or None) of one frame.
_Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class _Set:
    patterns: tuple[str, ...]  # one of these globs matches if the layout is present
    name_pattern: str  # regular expression of a frame name, with the groups that `files` uses
    files: Mapping[str, tuple[str, ...]]  # by role, the candidate paths
    read: Callable[[Mapping[str, Path]], _Parts]


def _read_nyuv2(files: Mapping[str, Path]) -> _Parts:
    image, depth = read_rgb(files["image"]), read_png16(files["depth"]) / 1000
    check_same_size(image, depth, files["image"], files["depth"])
    if depth.shape != _NYUV2_SIZE:
        height, width = depth.shape
        what = f"a frame of {height} x {width} is not NYUv2's"
        hint = "the Eigen crop needs 480 x 640 pixels"
        raise UserError(what, where=files["depth"], hint=hint)
    return image, depth, _NYUV2_MASK, _NYUV2_CAMERA


def _read_kitti(files: Mapping[str, Path]) -> _Parts:
    image, depth = read_rgb(files["image"]), read_png16(files["depth"]) / 256
    check_same_size(image, depth, files["image"], files["depth"])
    (rows, columns), (height, width) = depth.shape, _KITTI_SIZE
    if rows < height or columns < width:
        what = f"a frame of {rows} x {columns} is too small for KITTI's {height} x {width}"
        raise UserError(what, where=files["depth"], hint="give frames as KITTI has them")
    left = (columns - width) // 2  # of an odd margin, the smaller half
    bottom = np.s_[rows - height :, left : left + width]
    return image[bottom], depth[bottom], _KITTI_MASK, None


def _read_eth3d(files: Mapping[str, Path]) -> _Parts:
    image = read_photograph(files["image"])
    depth = read_raw_floats(files["depth"], image.shape[:2])
    return image, depth, np.ones(depth.shape, bool), None


def _read_scannet(files: Mapping[str, Path]) -> _Parts:
    image, depth = read_rgb(files["image"]), read_png16(files["depth"]) / 1000
    (height, width), (rows, columns) = image.shape[:2], depth.shape
    # The sensor's 1296 x 968 are not quite 4 : 3.
    if abs(width * rows - height * columns) < 0.02 * width * rows:
        image = np.array(Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS))
    check_same_size(image, depth, files["image"], files["depth"])
    camera = files["depth"].parents[1] / "intrinsic" / "intrinsic_depth.txt"
    intrinsics = None
    if is_file(camera):
        matrix = check_principal_point(
            read_matrix(camera), depth.shape, files["depth"], camera.name
        )
        focal, center = (matrix[0, 0], matrix[1, 1]), (matrix[0, 2], matrix[1, 2])
        intrinsics = _normalize_camera(focal, center, depth.shape)
    return image, depth, np.ones(depth.shape, bool), intrinsics


def _read_diode(files: Mapping[str, Path]) -> _Parts:
    image = read_rgb(files["image"])
    depth, mask = read_array(files["depth"]), read_array(files["mask"])
    check_same_size(image, depth, files["image"], files["depth"])
    check_same_size(image, mask, files["image"], files["mask"])
    rescale_intrinsics(_DIODE_CAMERA, (768, 1024), image.shape, files["image"])  # refuses crops
    return image, depth, mask != 0, _DIODE_CAMERA


def _normalize_camera(
    focal: tuple[float, float], center: tuple[float, float], size: tuple[int, ...]
) -> np.ndarray:
    """Returns normalized intrinsics f32 [3 3] of an image of (h, w) pixels."""
    height, width = size
    x, y = (focal[0] / width, 0, center[0] / width), (0, focal[1] / height, center[1] / height)
    return np.array([x, y, (0, 0, 1)], np.float32)


def _box(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """Returns a mask bool [h w] of a box."""
    mask = np.zeros(size, np.bool_)
    mask[rows, columns] = True
    return mask


_NYUV2_SIZE, _KITTI_SIZE = (480, 640), (352, 1216)  # frames of KITTI differ by a few pixels
# Eigen's crops. KITTI's is from 0.3324324 to 0.91351351 of the rows and from 0.0359477 to
# 0.96405229 of the columns, truncated to whole pixels; of the benchmark's crop, as Marigold has it,
# where BTS takes the whole frame.
_NYUV2_MASK = _box(_NYUV2_SIZE, slice(45, 471), slice(41, 601))
_KITTI_MASK = _box(_KITTI_SIZE, slice(117, 321), slice(43, 1172))
_NYUV2_CAMERA = _normalize_camera((518.8579, 519.4696), (325.5825, 253.7362), _NYUV2_SIZE)
_DIODE_CAMERA = _normalize_camera((886.81, 927.06), (512, 384), (768, 1024))

_SETS: Mapping[str, _Set] = {
    "nyuv2": _Set(
        ("test/*/rgb_*.png",),
        r"(?P<folder>test/[^/]+)/rgb_(?P<number>\d+)",
        {"image": ("{folder}/rgb_{number}.png",), "depth": ("{folder}/depth_{number}.png",)},
        _read_nyuv2,
    ),
    "kitti": _Set(
        ("????_??_??/*_sync/image_02",),
        r"(?P<date>\d{4}_\d\d_\d\d)/(?P<drive>[^/]+_sync)/image_02/data/(?P<number>\d{10})",
        {
            "image": ("{date}/{drive}/image_02/data/{number}.png",),
            "depth": tuple(
                f"{part}{{drive}}/proj_depth/groundtruth/image_02/{{number}}.png"
                for part in ("", "train/", "val/")
            ),
        },
        _read_kitti,
    ),
    "eth3d": _Set(
        ("rgb/*/images/dslr_images", "*/images/dslr_images"),
        r"(?P<scene>[^/]+)/(?P<number>[^/]+)",
        {
            "image": tuple(
                f"{part}{{scene}}/images/dslr_images/{{number}}.JPG" for part in ("rgb/", "")
            ),
            "depth": tuple(
                f"{part}{{scene}}/ground_truth_depth/dslr_images/{{number}}.JPG"
                for part in ("depth/{scene}_dslr_depth/", "")
            ),
        },
        _read_eth3d,
    ),
    "scannet": _Set(
        ("scene????_??/color",),
        r"(?P<scene>scene\d{4}_\d\d)/(?P<number>0*(?P<short>\d+))",
        {
            "image": ("{scene}/color/{number}.jpg", "{scene}/color/{short}.jpg"),
            "depth": ("{scene}/depth/{number}.png", "{scene}/depth/{short}.png"),
        },
        _read_scannet,
    ),
    "diode": _Set(
        ("indoors/scene_*", "outdoor/scene_*", "val/indoors/scene_*", "val/outdoor/scene_*"),
        r"(?P<stem>(?:indoors|outdoor)/scene_\d+/scan_\d+/[^/]+)",
        {
            role: (f"{{stem}}{ending}", f"val/{{stem}}{ending}")
            for role, ending in {
                "image": ".png",
                "depth": "_depth.npy",
                "mask": "_depth_mask.npy",
            }.items()
        },
        _read_diode,
    ),
}


@dataclass(frozen=True)
class NativeLayout:
    """One set in its native layout; the module docstring documents its masks."""

    benchmark: Benchmark
    root: Path
    kind: Literal["native"] = "native"

    @property
    def num_expected(self) -> int | None:
        """The number of frames of the official list."""
        return self.benchmark.num_images

    def names(self) -> tuple[str, ...]:
        """Returns the frames of the official list."""
        return official_names(self.benchmark.name)

    def files(self, name: str) -> Mapping[str, Path]:
        """Returns the expected paths of a frame's files by role; UserError for a malformed name."""
        layout = _SETS[self.benchmark.name]
        match = re.fullmatch(layout.name_pattern, name)
        if not match:
            raise UserError(
                f"{name!r} is not the name of a frame of {self.benchmark.title}",
                hint=f"write names like {self.names()[0]}",
            )
        files = {}
        for role, candidates in layout.files.items():
            paths = [self.root / path.format(**match.groupdict()) for path in candidates]
            files[role] = next((path for path in paths if is_file(path)), paths[0])
        return files

    def read(self, name: str) -> Frame:
        """Reads a frame; raises UserError for a damaged file or different sizes."""
        image, depth, mask, intrinsics = _SETS[self.benchmark.name].read(self.files(name))
        with np.errstate(over="ignore"):
            depth = depth.astype(np.float32)
        valid = mask & np.isfinite(depth) & (depth > 0)
        return Frame(name, image, np.where(valid, depth, np.float32(0)), valid, intrinsics)


def layout_patterns(benchmark: str) -> tuple[str, ...]:
    """Returns the globs of a set's native layout; none for a set that is read as a bundle only."""
    return _SETS[benchmark].patterns if benchmark in _SETS else ()


def find_native_layout(benchmark: Benchmark, root: Path) -> NativeLayout | None:
    """Returns the native layout in `root` or in its subfolder for the set; None if absent."""
    for folder in (root, root / benchmark.name, root / benchmark.folder):
        for pattern in layout_patterns(benchmark.name):
            if next(folder.glob(pattern), None):
                return NativeLayout(benchmark, folder)
    return None
