"""MegaDepth v1: web photographs of sights, with depth from multi-view stereo where it was reliable.

Layout, in the root or in phoenix/S6/zl548/MegaDepth_v1 or MegaDepth_v1 of it:
SCENE/denseK/imgs/NAME.jpg and depths/NAME.h5 with the key "depth". Depth is along the axis in the
scale of the scene's reconstruction ("sfm"), 0 where invalid. Maps with negative values hold the
order of depths only and are refused. The known cameras are those of the images before undistortion,
so intrinsics are unknown. There is no official split.
Source: cs.cornell.edu/projects/megadepth; ubc-vision/COTR, prepare_data.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_hdf5, read_photograph
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Path]]:
    homes = (root / "phoenix/S6/zl548/MegaDepth_v1", root / "MegaDepth_v1", root)
    home = next(home for home in homes if is_dir(home))
    for dense in glob_paths(home, "*/dense*"):
        images, depths = glob_paths(dense, "imgs/*.*"), glob_paths(dense, "depths/*.h5")
        yield from sorted(unused.match(images, depths), key=lambda pair: pair[1])


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, depth_path = frame
    depth = read_hdf5(depth_path, "depth")
    if depth.ndim != 2 or not depth.size:
        what = f"holds depth of shape {depth.shape}, not [h w]"
        raise UserError(what, where=depth_path, hint="unpack it again")
    if depth.min() < 0:
        what = "holds only the order of depths"
        raise UserError(what, where=depth_path, hint="leave the frame out")
    home = path.parents[3]  # ids are relative to it
    image = read_photograph(path, (depth.shape[0], depth.shape[1]))
    return make_record(replace(info, root=home), path, image, depth)


DATASET = FrameDataset(
    name="megadepth",
    title="MegaDepth",
    unit="sfm",
    splits=("train",),
    license="CC BY 4.0, photographs their owners'",
    layout="SCENE/denseK/{imgs/NAME.jpg, depths/NAME.h5}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
