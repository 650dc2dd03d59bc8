"""An image and its depth map: turned upright alike, and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from modality_forcing.data.files import DepthFormat, orient, read_oriented_image, read_stored_depth
from modality_forcing.data.resize import Size
from modality_forcing.errors import UserError

# How depth maps are oriented where the EXIF tags of image and map differ. "": such pairs are
# refused. upright: each by its own tag, so that a map without one is upright. stored: both have the
# raster of the stored image.
Orientation = Literal["", "upright", "stored"]

REPEATED = 0.03  # fraction of a map that is too much for one value
_MIN_REPEATS = 16  # pixels: a small map has few values
_TRANSPOSING = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns


@dataclass(frozen=True)
class Pair:
    """The files of an image and its depth map, if it has one."""

    image: Path
    depth: Path | None


def read_pair(
    pair: Pair, form: DepthFormat, orientation: Orientation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image u8 [h w 3], depth f32 and valid bool [y x], upright.

    Depth may have another size; where there is none, nothing is valid. Raises UserError for a file
    that cannot be read, for another aspect, and where EXIF orientations leave open how the map is
    oriented.
    """
    image, image_tag = read_oriented_image(pair.image)
    size = (image.shape[0], image.shape[1])
    if pair.depth is None:
        return image, np.zeros(size, np.float32), np.zeros(size, np.bool_)
    depth, valid, depth_tag = read_stored_depth(pair.depth, form)
    stored = (depth.shape[0], depth.shape[1])
    if orientation == "stored":
        turn = image_tag
    elif orientation == "upright" or depth_tag == image_tag:
        turn = depth_tag
    elif depth_tag == 1 and _is_known_by_aspect(image_tag, size, stored):
        turn = 1
    else:
        what = f"its EXIF orientation is {depth_tag}, that of its image {image_tag}"
        hint = (
            "set depth_orientation=upright if viewers show the map upright, or stored if its "
            "pixels are in the order of the image's"
        )
        raise UserError(what, where=pair.depth, hint=hint)
    depth, valid = orient(depth, turn), orient(valid, turn)
    _check_aspect(pair.depth, size, (depth.shape[0], depth.shape[1]))
    return image, depth, valid


def repeated_values(
    maps: Iterable[tuple[str, Callable[[], tuple[np.ndarray, np.ndarray]]]],
) -> tuple[int, str, float, float]:
    """Counts the maps whose nearest or farthest depth fills more than `REPEATED` of them.

    So does a mark of missing depth that was taken for depth. maps: names, and functions that read
    depth and valid [h w]; maps that cannot be read are left out. Returns the count, and name, depth
    and fraction of the first.
    """
    count, first = 0, ("", 0.0, 0.0)
    for name, read in maps:
        try:
            depth, valid = read()
        except UserError:  # reported when the record is read
            continue
        measured = depth[valid]
        ends = (measured.max(), measured.min())
        repeats = [int(np.count_nonzero(measured == end)) for end in ends]
        most = max(repeats)
        if most > max(REPEATED * depth.size, _MIN_REPEATS):
            count += 1
            if count == 1:
                first = (name, float(ends[repeats.index(most)]), most / depth.size)
    return count, *first


def _is_known_by_aspect(orientation: int, size: Size, stored: Size) -> bool:
    """Returns whether a map without a tag can only be upright, by its aspect.

    size: of the upright image, which was stored in an orientation.
    """
    if orientation not in _TRANSPOSING:
        return False
    return _same_aspect(size, stored) and not _same_aspect((size[1], size[0]), stored)


def _same_aspect(image: Size, depth: Size) -> bool:
    """Returns whether a map has the aspect of an image, to within a pixel's rounding."""
    expected = depth[0] * image[1] / image[0]  # columns, for the rows of the depth map
    # A scaled size is rounded to whole pixels on both axes, which matters in a small map.
    rounding = 0.5 + 0.5 * image[1] / image[0]
    return abs(depth[1] - expected) <= max(0.01 * expected, rounding)


def _check_aspect(path: Path, image: Size, depth: Size) -> None:
    if not _same_aspect(image, depth):
        sizes = f"{depth[1]} x {depth[0]}, the upright image {image[1]} x {image[0]}"
        hint = "crop or turn one like the other"
        raise UserError(f"depth has another aspect ({sizes})", where=path, hint=hint)
