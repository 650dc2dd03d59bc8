"""Brings whole frames to the size they are stored at: never enlarged, depth picked and never mixed, intrinsics following.

The whole frame is kept, and not its centre square, so that training can still choose where to crop: a third more bytes
for a picture of 4 : 3. Cutting the centre square out of it later is exact, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import DENSE, resize_intrinsics, shrink_picture

Size = tuple[int, int]  # rows, columns


def shorter_side(size: Size, pixels: int) -> Size:
    """Returns an (h, w) whose shorter side has `pixels`, or the size itself if it has no more.

    The longer side differs from the shorter one by an even number, lest the centre square begin on half a pixel.
    """
    short = min(size)
    if short <= pixels:
        return size
    longer = round(max(size) * pixels / short)
    longer += (longer - pixels) % 2
    return (pixels, longer) if size[0] == short else (longer, pixels)


def longer_side(size: Size, pixels: int) -> Size:
    """Returns an (h, w) whose longer side has `pixels`, or the size itself if it has no more."""
    longest = max(size)
    if longest <= pixels:
        return size
    rows, columns = (max(1, round(side * pixels / longest)) for side in size)
    return rows, columns


def shrink(record: Record, choose: Callable[[Size], Size]) -> Record:
    """Returns the record at the size that `choose` gives for its own; the record itself if that is its size."""
    before = record.depth.shape
    size = choose((before[0], before[1]))
    if size == before:
        return record
    depth, valid = shrink_depth(record.depth, record.valid, size)
    intrinsics = resize_intrinsics(record.intrinsics.astype(np.float64), before, size).astype(
        np.float32
    )
    return replace(
        record,
        image=shrink_picture(record.image, size),
        depth=depth,
        valid=valid,
        intrinsics=intrinsics,
    )


def shrink_depth(depth: np.ndarray, valid: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool of an (h, w) `size` no larger than that of depth [h w] and valid bool [h w].

    As `resize.place_depth` has it: a surface is read at the pixel under each cell's centre, points are dropped into the
    cells they fall into and the nearest wins. Raises ValueError if a side would grow.
    """
    if size[0] > depth.shape[0] or size[1] > depth.shape[1]:
        raise ValueError(f"a map of {depth.shape} to {size}")
    if np.count_nonzero(valid) >= DENSE * valid.size:
        at = np.ix_(
            *(
                np.floor((np.arange(m) + 0.5) * (n / m)).astype(np.int64)
                for n, m in zip(depth.shape, size, strict=True)
            )
        )
        known = valid[at]
        return np.where(known, depth[at], 0).astype(np.float32), known
    row, column = np.divmod(
        np.flatnonzero(valid), valid.shape[1]
    )  # much faster than both indices at once
    rows, columns = (
        np.floor((at + 0.5) * (m / n)).astype(np.int64)
        for at, m, n in zip((row, column), size, depth.shape, strict=True)
    )
    nearest = np.full(size[0] * size[1], np.inf, np.float32)
    np.minimum.at(nearest, rows * size[1] + columns, depth[row, column].astype(np.float32))
    nearest = nearest.reshape(size)
    known = np.isfinite(nearest)
    return np.where(known, nearest, 0).astype(np.float32), known
