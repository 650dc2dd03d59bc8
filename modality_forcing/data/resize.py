"""Crops and resizes records: images are filtered, depth and normals are picked and never mixed.

Training sees squares (`crop_resize`); `mforce prepare` stores whole frames (`downscale`), a third
more bytes for a 4 : 3 image, so that training can still choose the crop. Cutting the center square
out of a stored frame is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from modality_forcing.data.records import Record

DENSE = 0.5  # depth valid in at least this fraction of pixels is a surface, else a set of points

Size = tuple[int, int]  # rows, columns


def format_size(shape: Sequence[int]) -> str:
    """Returns "width x height" of an array [h w ...]."""
    return f"{shape[1]} x {shape[0]}"


@dataclass(frozen=True)
class Window:
    """A rectangle in continuous pixel coordinates: pixel (i, j) covers [i, i + 1] x [j, j + 1]."""

    top: float
    left: float
    height: float
    width: float

    def rescale(self, size: Size, other: Size) -> Window:
        """Returns the same part of the view, in a raster of `other` instead of `size`."""
        rows, columns = other[0] / size[0], other[1] / size[1]
        return Window(
            self.top * rows, self.left * columns, self.height * rows, self.width * columns
        )


def center_square(size: Size) -> Window:
    """Returns the largest centered square of an (h, w) raster."""
    side = min(size)
    return Window((size[0] - side) / 2, (size[1] - side) / 2, side, side)


def center_window(size: Size, shape: Size) -> Window:
    """Returns the largest centered window of an (h, w) raster with the aspect of `shape`."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    height, width = min(scale * shape[0], size[0]), min(scale * shape[1], size[1])
    return Window((size[0] - height) / 2, (size[1] - width) / 2, height, width)


def center_crop_resize(record: Record, resolution: int) -> Record:
    """Returns the center square at resolution x resolution pixels; the record itself if equal."""
    height, width = record.depth.shape
    return crop_resize(record, center_square((height, width)), resolution)


def crop_resize(record: Record, window: Window, resolution: int) -> Record:
    """Returns the window at resolution x resolution pixels, without resampling where possible."""
    if record.depth.shape == (resolution, resolution) == (window.height, window.width):
        return record
    if (crop := _exact_crop(window, record.depth.shape, resolution)) is not None:
        image, valid = record.image[crop], record.valid[crop]
        depth = np.where(valid, record.depth[crop], np.float32(0))
        normals = None if record.normals is None else record.normals[crop]
    else:
        image = crop_resize_image(record.image, window, resolution)
        depth, valid = crop_resize_depth(record.depth, record.valid, window, resolution)
        normals = record.normals
        if normals is not None:
            normals = normals[
                np.ix_(*_under_centers(record.valid.shape, window, (resolution, resolution)))
            ]
    intrinsics = crop_resize_intrinsics(record.intrinsics, window, resolution)
    return replace(
        record, image=image, depth=depth, valid=valid, intrinsics=intrinsics, normals=normals
    )


def crop_resize_image(image: np.ndarray, window: Window, to: int | Size) -> np.ndarray:
    """Returns the window of an image u8 [h w 3], antialiased, as u8 [rows columns 3].

    to: rows and columns, or the side of a square.
    """
    rows, columns = to if isinstance(to, tuple) else (to, to)
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    shrinks = window.height > rows and window.width > columns
    # Lanczos keeps detail when shrinking, but rings visibly around the blocks of an enlarged image.
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    resized = Image.fromarray(image).resize((columns, rows), kernel, box=box, reducing_gap=3.0)
    return np.asarray(resized)


def crop_resize_depth(
    depth: np.ndarray, valid: np.ndarray, window: Window, to: int | Size
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool [rows columns] of a window of depth [h w].

    to: rows and columns, or the side of a square.

    A surface (`DENSE`) and an enlarged map are read at the pixel under each cell's center, so that
    holes stay holes and edges stay in place. Sparse points go into the cell they fall into, and the
    nearest wins: the image does not show what it hides. Interpolating would invent depths in
    mid-air at every edge. Empty cells are 0 and not valid.
    """
    size = to if isinstance(to, tuple) else (to, to)
    rows = _cells(depth.shape[0], window.top, window.height, size[0])
    columns = _cells(depth.shape[1], window.left, window.width, size[1])
    inside = valid[_span(rows), _span(columns)]
    enlarged = window.height <= size[0] or window.width <= size[1]
    if not enlarged and not _is_dense(inside):
        return _scatter(depth, valid, rows, columns, size)
    return _read(depth, valid, np.ix_(*_under_centers(depth.shape, window, size)))


def crop_resize_intrinsics(intrinsics: np.ndarray, window: Window, resolution: int) -> np.ndarray:
    """Returns f32 [3 3] intrinsics of the resized window; (0, 0) is the center of its first pixel.

    NaN stays NaN.
    """
    change = _pixel_transform(window, (resolution, resolution))
    return (change @ intrinsics.astype(np.float64)).astype(np.float32)


def limit_shorter_side(size: Size, pixels: int) -> Size:
    """Returns an (h, w) whose shorter side has `pixels`, or the size itself if it has fewer.

    The sides differ by an even number, so that the center square begins on a whole pixel.
    """
    short = min(size)
    if short <= pixels:
        return size
    longer = round(max(size) * pixels / short)
    longer += (longer - pixels) % 2
    return (pixels, longer) if size[0] == short else (longer, pixels)


def limit_longer_side(size: Size, pixels: int) -> Size:
    """Returns an (h, w) whose longer side has `pixels`, or the size itself if it has fewer."""
    longest = max(size)
    if longest <= pixels:
        return size
    rows, columns = (max(1, round(side * pixels / longest)) for side in size)
    return rows, columns


def downscale(record: Record, choose_size: Callable[[Size], Size]) -> Record:
    """Returns the whole record at `choose_size` of its size; the record itself if that is equal."""
    height, width = record.depth.shape
    size = choose_size((height, width))
    if size == (height, width):
        return record
    depth, valid = downscale_depth(record.depth, record.valid, size)
    intrinsics = scale_intrinsics(record.intrinsics.astype(np.float64), (height, width), size)
    normals = record.normals
    if normals is not None:
        normals = normals[np.ix_(*_nearest_centers(record.valid.shape, size))]
    return replace(
        record,
        image=downscale_image(record.image, size),
        depth=depth,
        valid=valid,
        intrinsics=intrinsics.astype(np.float32),
        normals=normals,
    )


def downscale_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Returns an image u8 [h w 3] at another (h, w), antialiased."""
    if image.shape[:2] == size:
        return image
    # By whole pixels to within a factor of two: hardly visible, in half the time.
    columns_rows = (size[1], size[0])
    kernel = Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(columns_rows, kernel, reducing_gap=2.0))


def downscale_depth(
    depth: np.ndarray, valid: np.ndarray, size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool at an (h, w) `size`, picked as by `crop_resize_depth`.

    Raises ValueError if a side would grow.
    """
    if size[0] > depth.shape[0] or size[1] > depth.shape[1]:
        raise ValueError(f"a map of {depth.shape} to {size}")
    if _is_dense(valid):
        return _read(depth, valid, np.ix_(*_nearest_centers(depth.shape, size)))
    rows, columns = (_cells(n, 0, n, m) for n, m in zip(depth.shape, size, strict=True))
    return _scatter(depth, valid, rows, columns, size)


def scale_intrinsics(intrinsics: np.ndarray, size: Size, other: Size) -> np.ndarray:
    """Returns the [3 3] intrinsics of a view in a raster of (h, w) `other` instead of `size`."""
    return _pixel_transform(Window(0, 0, *size), other) @ intrinsics


def _pixel_transform(window: Window, size: Size) -> np.ndarray:
    """The matrix [3 3] from pixel centers of the raster to those of the window at another size."""
    rows, columns = size[0] / window.height, size[1] / window.width
    # Edges scale, centers do not: a center is half a pixel from its edge before and after.
    shift_x = (0.5 - window.left) * columns - 0.5
    shift_y = (0.5 - window.top) * rows - 0.5
    return np.array([[columns, 0, shift_x], [0, rows, shift_y], [0, 0, 1]])


def _exact_crop(
    window: Window, size: tuple[int, ...], resolution: int
) -> tuple[slice, slice] | None:
    """Returns the pixels of a window that needs no resampling, or None."""
    if (window.height, window.width) != (resolution, resolution):
        return None
    top, left = int(window.top), int(window.left)
    if (top, left) != (window.top, window.left):
        return None
    if not (0 <= top <= size[0] - resolution and 0 <= left <= size[1] - resolution):
        return None
    return slice(top, top + resolution), slice(left, left + resolution)


def _cells(length: int, start: float, extent: float, count: int) -> np.ndarray:
    """Returns i64 [length], the target cell of each pixel's center, -1 outside the window."""
    cell = np.floor((np.arange(length) + 0.5 - start) * (count / extent)).astype(np.int64)
    return np.where((cell >= 0) & (cell < count), cell, -1)


def _under_centers(shape: tuple[int, ...], window: Window, size: Size) -> list[np.ndarray]:
    """Returns the rows and columns of the pixels under the centers of a window's cells."""
    down, right = ((np.arange(n) + 0.5) / n for n in size)
    at = [window.top + down * window.height, window.left + right * window.width]
    return [np.clip(np.floor(a).astype(np.int64), 0, n - 1) for a, n in zip(at, shape, strict=True)]


def _nearest_centers(shape: tuple[int, ...], size: Size) -> list[np.ndarray]:
    """Returns the same of the whole raster.

    Rounds otherwise than `_under_centers` where a center is on the edge of a pixel.
    """
    sides = zip(shape, size, strict=True)
    return [np.floor((np.arange(m) + 0.5) * (n / m)).astype(np.int64) for n, m in sides]


def _span(cells: np.ndarray) -> slice:
    """Returns the source pixels inside the window, along one axis."""
    inside = np.flatnonzero(cells >= 0)
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)


def _is_dense(valid: np.ndarray) -> bool:
    return valid.size > 0 and bool(np.count_nonzero(valid) >= DENSE * valid.size)


def _read(
    depth: np.ndarray, valid: np.ndarray, at: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    picked = valid[at]
    return np.where(picked, depth[at], 0).astype(np.float32), picked


def _scatter(
    depth: np.ndarray, valid: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest depth in each cell; rows [h] and columns [w] are the cells of pixels."""
    pixels = np.flatnonzero(valid)  # much faster than both indices at once
    z = depth.reshape(-1)[pixels]
    row, column = np.divmod(pixels, valid.shape[1])
    row, column = rows[row], columns[column]
    inside = (row >= 0) & (column >= 0)
    nearest = np.full(size[0] * size[1], np.inf, np.float32)
    np.minimum.at(nearest, row[inside] * size[1] + column[inside], z[inside].astype(np.float32))
    nearest = nearest.reshape(size)
    found = np.isfinite(nearest)
    return np.where(found, nearest, 0).astype(np.float32), found
