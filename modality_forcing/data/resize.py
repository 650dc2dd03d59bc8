"""Brings pictures and depth to the square training size: the picture is filtered, depth is picked and never mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from modality_forcing.data.records import Record

DENSE = 0.5  # a map valid in at least this part of its pixels is sampled like a surface, any other is a set of points


@dataclass(frozen=True)
class Window:
    """A rectangle in continuous pixel coordinates: pixel (row i, column j) covers [i, i + 1] x [j, j + 1]."""

    top: float
    left: float
    height: float
    width: float

    def seen_from(self, size: tuple[int, int], other: tuple[int, int]) -> Window:
        """Returns the same part of the view in another raster of it; `size` and `other` are the (h, w) of the two."""
        rows, columns = other[0] / size[0], other[1] / size[1]
        return Window(
            self.top * rows, self.left * columns, self.height * rows, self.width * columns
        )


def centre_square(size: tuple[int, int]) -> Window:
    """Returns the largest centred square of an (h, w) raster."""
    side = min(size)
    return Window((size[0] - side) / 2, (size[1] - side) / 2, side, side)


def fit(record: Record, resolution: int) -> Record:
    """Returns the record's centre square at resolution x resolution pixels; the record itself if that is its size.

    The picture is antialiased, every depth is one of the input's (`place_depth`), and the intrinsics follow exactly.
    """
    return place(record, centre_square(record.depth.shape), resolution)


def place(record: Record, window: Window, resolution: int) -> Record:
    """Returns the window of a record at resolution x resolution pixels; a window of just as many pixels is cut out."""
    if record.depth.shape == (resolution, resolution) == (window.height, window.width):
        return record
    if (cut := _whole_pixels(window, record.depth.shape, resolution)) is not None:
        image, valid = record.image[cut], record.valid[cut]
        depth = np.where(valid, record.depth[cut], np.float32(0))
    else:
        image = place_image(record.image, window, resolution)
        depth, valid = place_depth(record.depth, record.valid, window, resolution)
    return replace(
        record,
        image=image,
        depth=depth,
        valid=valid,
        intrinsics=place_intrinsics(record.intrinsics, window, resolution),
    )


def place_image(image: np.ndarray, window: Window, resolution: int) -> np.ndarray:
    """Returns the window of a u8 [h w 3] picture as u8 [resolution resolution 3], antialiased where it shrinks."""
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    shrinks = min(window.height, window.width) > resolution
    # Lanczos keeps detail when shrinking, but rings visibly around the large blocks of an enlarged small picture.
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    shrunk = Image.fromarray(image).resize(
        (resolution, resolution), kernel, box=box, reducing_gap=3.0
    )
    return np.asarray(shrunk)


def place_depth(
    depth: np.ndarray, valid: np.ndarray, window: Window, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool [resolution resolution] of the window of depth [h w] and valid bool [h w].

    A surface (`DENSE`) and an enlarged map are read at the pixel under each cell's centre, so that holes stay holes and
    nothing moves nearer. Sparse points are dropped into the cells they fall into and the nearest wins where several
    meet: what it hides, the picture does not show. Interpolating would invent depths in mid-air at every edge. Cells
    that nothing fell into are 0 and not valid.
    """
    rows = _cells(depth.shape[0], window.top, window.height, resolution)
    columns = _cells(depth.shape[1], window.left, window.width, resolution)
    inside = valid[_span(rows), _span(columns)]
    enlarged = min(window.height, window.width) <= resolution
    if enlarged or (inside.size and np.count_nonzero(inside) >= DENSE * inside.size):
        return _sample(depth, valid, window, resolution)
    return _scatter(depth, valid, rows, columns, resolution)


def place_intrinsics(intrinsics: np.ndarray, window: Window, resolution: int) -> np.ndarray:
    """Returns f32 [3 3] intrinsics of the resized window; the centre of the first pixel is at (0, 0), NaN stays NaN."""
    rows, columns = resolution / window.height, resolution / window.width
    # Edges scale, centres do not: a centre lies half a pixel from its edge before and after.
    shift_x = (0.5 - window.left) * columns - 0.5
    shift_y = (0.5 - window.top) * rows - 0.5
    change = np.array([[columns, 0, shift_x], [0, rows, shift_y], [0, 0, 1]])
    return (change @ intrinsics.astype(np.float64)).astype(np.float32)


def _whole_pixels(
    window: Window, size: tuple[int, int], resolution: int
) -> tuple[slice, slice] | None:
    """Returns which pixels of an (h, w) raster the cells of the resized window are, or None if they are not pixels."""
    starts, extents = (window.top, window.left), (window.height, window.width)
    if any(extent != resolution for extent in extents):
        return None
    if any(
        start != int(start) or not 0 <= start <= n - resolution
        for start, n in zip(starts, size, strict=True)
    ):
        return None
    top, left = int(window.top), int(window.left)
    return slice(top, top + resolution), slice(left, left + resolution)


def _cells(length: int, start: float, extent: float, resolution: int) -> np.ndarray:
    """Returns i64 [length], along one axis the target cell of each source pixel's centre, or -1 outside the window."""
    cell = np.floor((np.arange(length) + 0.5 - start) * (resolution / extent)).astype(np.int64)
    return np.where((cell >= 0) & (cell < resolution), cell, -1)


def _span(cells: np.ndarray) -> slice:
    """The source pixels inside the window, along one axis."""
    inside = np.flatnonzero(cells >= 0)
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)


def _sample(
    depth: np.ndarray, valid: np.ndarray, window: Window, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(resolution) + 0.5) / resolution
    row = np.clip(
        np.floor(window.top + centres * window.height).astype(np.int64), 0, depth.shape[0] - 1
    )
    column = np.clip(
        np.floor(window.left + centres * window.width).astype(np.int64), 0, depth.shape[1] - 1
    )
    known = valid[np.ix_(row, column)]
    return np.where(known, depth[np.ix_(row, column)], 0).astype(np.float32), known


def _scatter(
    depth: np.ndarray, valid: np.ndarray, rows: np.ndarray, columns: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    known = np.flatnonzero(valid)  # much faster than both indices at once
    z = depth.reshape(-1)[known]
    row, column = np.divmod(known, valid.shape[1])
    row, column = rows[row], columns[column]
    inside = (row >= 0) & (column >= 0)
    nearest = np.full(resolution * resolution, np.inf, np.float32)
    np.minimum.at(nearest, row[inside] * resolution + column[inside], z[inside].astype(np.float32))
    nearest = nearest.reshape(resolution, resolution)
    known = np.isfinite(nearest)
    return np.where(known, nearest, 0).astype(np.float32), known


def shrink_picture(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture u8 [h w 3] at another (h, w), antialiased."""
    if image.shape[:2] == size:
        return image
    # To within a factor of two by means of whole pixels, which hardly shows and takes half the time.
    return np.asarray(
        Image.fromarray(image).resize(
            (size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=2.0
        )
    )


def resize_intrinsics(
    intrinsics: np.ndarray, size: tuple[int, int], other: tuple[int, int]
) -> np.ndarray:
    """Returns the [3 3] intrinsics of the same view in a raster of (h, w) `other` instead of `size`."""
    down, across = other[0] / size[0], other[1] / size[1]
    # Edges scale, centres do not: a centre lies half a pixel from its edge before and after.
    change = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
    return change @ intrinsics
