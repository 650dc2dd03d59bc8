"""NYUv2: a Kinect in rooms, the registered depth with its holes; what was filled in is never read.

Layouts, in the folder given or, for the first, in its folder nyuv2:
  SPLIT/SCENE/rgb_NNNN.png and depth_NNNN.png (filled_NNNN.png beside): Marigold's archive of the labelled frames, 795 to
    train and 654 to test;
  SCENE/rgb_NNNNN.jpg and sync_depth_NNNNN.png: the frames synchronised for monocular depth; or the two kinds in folders
    rgb/ and depth/ of their own. These have no split: "train" has all of them.
Depth is 16-bit PNG in millimetres along the axis, 0 where unknown. Pictures have a white border of up to 8 pixels, outside
of all depth, which is cut off: 464 x 624 pixels of 480 x 640 are left. Intrinsics: the toolbox's of the colour camera.
Source: cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; prs-eth/Marigold, src/dataset/nyu_dataset.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import check_same_size, read_rgb, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    pinhole,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

BORDER = 8
_TITLE = "NYUv2"
_SIZE = (480, 640)
_CAMERA = pinhole(
    518.85790117450188, 519.46961112127485, 325.58244941119034 - BORDER, 253.73616633400465 - BORDER
)


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    archive = next(
        (
            place
            for place in (root, root / "nyuv2")
            if (place / "train").is_dir() or (place / "test").is_dir()
        ),
        None,
    )
    if archive:
        pictures = glob_paths(archive / split, "*/rgb_*.png") if (archive / split).is_dir() else []
    elif split == "train":
        pictures = [
            path for pattern in ("", "*/", "*/*/") for path in glob_paths(root, f"{pattern}rgb_*.*")
        ]
    else:
        pictures = []
    pairs = [(picture, depth) for picture in pictures for depth in _depth(picture)]
    layout = f"{split}/SCENE/{{rgb_NNNN.png, depth_NNNN.png}}" + (
        ", or SCENE/{rgb_N.jpg, sync_depth_N.png}"
    ) * (split == "train")
    return LazySource(
        require_nonempty(pairs, root, _TITLE, layout),
        partial(_read, DatasetInfo("nyuv2", "metric", root)),
    )


def _depth(picture: Path) -> list[Path]:
    """The depth map of a picture, if there is one."""
    number = picture.stem.removeprefix("rgb_")
    folders = [
        picture.parent,
        *([picture.parents[1] / "depth"] if picture.parent.name == "rgb" else []),
    ]
    places = [
        folder / f"{name}_{number}.png" for folder in folders for name in ("depth", "sync_depth")
    ]
    return [place for place in places if place.is_file()][:1]


def _read(info: DatasetInfo, pair: tuple[Path, Path]) -> Record:
    picture, depth_path = pair
    image, depth = read_rgb(picture), read_uint16_depth(depth_path, 1000)
    check_same_size(image, depth, picture, depth_path)
    if depth.shape != _SIZE:
        what = f"is {depth.shape[1]} x {depth.shape[0]} pixels, not 640 x 480, for which its camera and border are known"
        raise UserError(what, where=depth_path, hint="unpack the original again")
    inside = slice(BORDER, -BORDER)
    return make_record(
        info, picture, image[inside, inside], depth[inside, inside], intrinsics=_CAMERA
    )


DATASET = Dataset("nyuv2", _TITLE, "metric", ("train", "test"), "none stated", _open)
