"""MegaDepth v1: photographs of sights from the web, with depth where stereo matching was sure of it.

Layout, in the folder given or in phoenix/S6/zl548/MegaDepth_v1 or MegaDepth_v1 of it: SCENE/denseK/imgs/NAME.jpg and
depths/NAME.h5 with the key "depth". Depth is along the axis in the scale of the scene's reconstruction ("sfm"), 0 where
unknown. Maps with negative values are no depth: they tell only what lies before what, and are refused when read. Cameras
are known for the pictures before their lens was corrected, so intrinsics are unknown. There is no official split.
Source: cs.cornell.edu/projects/megadepth; ubc-vision/COTR, prepare_data.md.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_hdf5, read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "MegaDepth"


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    places = (root / "phoenix/S6/zl548/MegaDepth_v1", root / "MegaDepth_v1", root)
    home = next(place for place in places if place.is_dir())
    pictures = {path.with_name(path.stem): path for path in glob_paths(home, "*/dense*/imgs/*.*")}
    maps = glob_paths(home, "*/dense*/depths/*.h5")
    pairs = [
        (pictures[name], path)
        for path in maps
        if (name := path.parents[1] / "imgs" / path.stem) in pictures
    ]
    layout = "SCENE/denseK/{imgs/NAME.jpg, depths/NAME.h5}"
    return LazySource(
        require_nonempty(pairs, root, _TITLE, layout),
        partial(_read, DatasetInfo("megadepth", "sfm", home)),
    )


def _read(info: DatasetInfo, pair: tuple[Path, Path]) -> Record:
    picture, path = pair
    depth = read_hdf5(path, "depth")
    if depth.ndim != 2 or not depth.size:
        raise UserError(
            f"holds depth of shape {depth.shape}, not [h w]", where=path, hint="unpack it again"
        )
    if depth.min() < 0:
        raise UserError(
            "tells only what lies before what, not depth", where=path, hint="leave the frame out"
        )
    return make_record(info, picture, read_rgb(picture), depth)


DATASET = Dataset(
    "megadepth", _TITLE, "sfm", ("train",), "CC BY 4.0, photographs their owners'", _open
)
