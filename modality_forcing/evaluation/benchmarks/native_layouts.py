"""The five benchmarks of Marigold's evaluation as their authors, or Marigold's archives of them, lay them out.

Names of frames, as the lists have them, and what is read for each, below the folder given:

nyuv2    test/kitchen_0004/rgb_0001   that .png and depth_0001.png beside it: millimetres in 16 bits, the raw depth; the
         filled depth is for training. Scored inside Eigen's crop, which leaves out the white border.
kitti    2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069   that .png and
         [train/ or val/]2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png: 1/256 metres in 16 bits.
         Picture and depth are cropped to the benchmark's 352 x 1216 and scored inside Eigen's crop of that.
eth3d    courtyard/DSC_0286   rgb/courtyard/images/dslr_images/DSC_0286.JPG and depth/courtyard_dslr_depth/courtyard/
         ground_truth_depth/dslr_images/DSC_0286.JPG, which is raw floats in metres, inf where nothing is known. The same
         without rgb/ and depth/courtyard_dslr_depth/, as eth3d.net packs it. Pictures are distorted: no pinhole camera.
scannet  scene0406_02/000300   scene0406_02/color/000300.jpg and depth/000300.png, millimetres in 16 bits, or both as 300;
         a larger colour picture is brought to the raster of its depth. The camera is that of intrinsic/intrinsic_depth.txt.
diode    indoors/scene_00021/scan_00189/00021_00189_indoors_200_010   that .png, _depth.npy in metres and _depth_mask.npy,
         also below val/. Scored where the mask says so.

0 is unknown everywhere, and so is whatever is not finite and positive. Source: prs-eth/Marigold, src/dataset/*.py and
data_split/; Eigen et al. 2014. Depth ranges are not applied here: they belong to the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from modality_forcing.data.files import read_png16
from modality_forcing.datasets.common.formats import (
    check_same_size,
    read_array,
    read_matrix,
    read_raw_floats,
    read_rgb,
)
from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.errors import UserError
from modality_forcing.evaluation import crops
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame

# Picture, depth, mask and intrinsics (or None) of one frame, from its files by role.
_Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class _Set:
    marks: tuple[str, ...]  # patterns of which one matches if this layout is here
    form: str  # of a name, with the groups that `files` uses
    files: Mapping[str, tuple[str, ...]]  # by role, the places where it may be
    read: Callable[[Mapping[str, Path]], _Parts]


def _read_nyuv2(files: Mapping[str, Path]) -> _Parts:
    image, depth = read_rgb(files["image"]), read_png16(files["depth"]) / 1000
    check_same_size(image, depth, files["image"], files["depth"])
    with _naming(files["depth"]):
        scored = crops.nyu_eigen(*depth.shape)
    return image, depth, scored, _camera(518.8579, 519.4696, 325.5825, 253.7362, (480, 640))


def _read_kitti(files: Mapping[str, Path]) -> _Parts:
    image, depth = read_rgb(files["image"]), read_png16(files["depth"]) / 256
    check_same_size(image, depth, files["image"], files["depth"])
    with _naming(files["depth"]):
        image, depth = crops.kitti_benchmark(image), crops.kitti_benchmark(depth)
    return image, depth, crops.kitti_eigen(*depth.shape), None


def _read_eth3d(files: Mapping[str, Path]) -> _Parts:
    image = read_rgb(files["image"])
    depth = read_raw_floats(files["depth"], image.shape[:2])
    return image, depth, np.ones(depth.shape, bool), None


def _read_scannet(files: Mapping[str, Path]) -> _Parts:
    image, depth = read_rgb(files["image"]), read_png16(files["depth"]) / 1000
    (height, width), (rows, columns) = image.shape[:2], depth.shape
    if (
        abs(width * rows - height * columns) < 0.02 * width * rows
    ):  # the sensor's 1296 x 968 are not quite 4 : 3
        image = np.array(Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS))
    check_same_size(image, depth, files["image"], files["depth"])
    camera = files["depth"].parents[1] / "intrinsic" / "intrinsic_depth.txt"
    intrinsics = None
    if camera.is_file():
        matrix = read_matrix(camera)
        intrinsics = _camera(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], depth.shape)
    return image, depth, np.ones(depth.shape, bool), intrinsics


def _read_diode(files: Mapping[str, Path]) -> _Parts:
    image, depth, mask = (
        read_rgb(files["image"]),
        read_array(files["depth"]),
        read_array(files["mask"]),
    )
    check_same_size(image, depth, files["image"], files["depth"])
    check_same_size(image, mask, files["image"], files["mask"])
    return image, depth, mask != 0, _camera(886.81, 927.06, 512, 384, (768, 1024))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says of which file a crop complains."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error), where=path) from error


def _camera(fx: float, fy: float, cx: float, cy: float, size: tuple[int, ...]) -> np.ndarray:
    """Returns f32 [3 3] in parts of a picture of (h, w) pixels."""
    height, width = size
    return np.array(
        [[fx / width, 0, cx / width], [0, fy / height, cy / height], [0, 0, 1]], np.float32
    )


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
class Original:
    """One set in its original layout; which pixels of a frame are scored is said in the head of this module."""

    benchmark: Benchmark
    root: Path
    kind: Literal["original"] = "original"

    @property
    def expected(self) -> int | None:
        """How many frames the official list has."""
        return self.benchmark.images

    def names(self) -> tuple[str, ...]:
        """Returns the frames of the official list."""
        return official_names(self.benchmark.name)

    def files(self, name: str) -> Mapping[str, Path]:
        """Returns where the files of a frame are, or would be, by role; raises UserError for a name of another form."""
        parts = _SETS[self.benchmark.name]
        groups = re.fullmatch(parts.form, name)
        if not groups:
            like = self.names()[0]
            raise UserError(
                f"{name!r} is not the name of a frame of {self.benchmark.title}",
                hint=f"write names like {like}",
            )
        found = {}
        for role, places in parts.files.items():
            paths = [self.root / place.format(**groups.groupdict()) for place in places]
            found[role] = next((path for path in paths if path.is_file()), paths[0])
        return found

    def read(self, name: str) -> Frame:
        """Returns one frame; raises UserError for a damaged file, or depth and picture of different sizes."""
        image, depth, scored, intrinsics = _SETS[self.benchmark.name].read(self.files(name))
        with np.errstate(over="ignore"):
            depth = depth.astype(np.float32)
        valid = scored & np.isfinite(depth) & (depth > 0)
        return Frame(name, image, np.where(valid, depth, np.float32(0)), valid, intrinsics)


def marks_of(benchmark: str) -> tuple[str, ...]:
    """Returns the patterns by which a set's original layout is known; none for a set that is read as a bundle only."""
    return _SETS[benchmark].marks if benchmark in _SETS else ()


def find_original(benchmark: Benchmark, root: Path) -> Original | None:
    """Returns the set in its original layout if that lies in `root` or in its folder of the set's name; None if not."""
    folders = [root, root / benchmark.name, root / benchmark.folder]
    here = (
        folder
        for folder in folders
        for mark in marks_of(benchmark.name)
        if next(folder.glob(mark), None)
    )
    return next((Original(benchmark, folder) for folder in here), None)
