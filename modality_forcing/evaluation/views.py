"""The view that MoGe's benchmarks are scored in: the raw frame seen by a camera that looks through its middle.

Facts from microsoft/MoGe, moge/test/dataloader.py: raw frames have any size and a principal point anywhere; the camera
is turned until its axis passes through the middle of the frame, and sees the largest rectangle of the asked shape that
lies in the frame. Cameras here are normalised intrinsics: coordinates (u, v) run from 0 to 1 over the frame, pixel j of
w is centred at (j + 0.5) / w, and a focal length of 1 / e sees an extent of e at distance 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError

_CORNERS = np.array(
    [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1]]
)  # of a frame, (u, v, 1), in order around it


class View(NamedTuple):
    """A frame as a benchmark scores it."""

    image: np.ndarray  # u8 [h w 3]
    depth: np.ndarray  # f32 [h w], along the axis of this view's camera; 0 where it is not known
    valid: np.ndarray  # bool [h w]
    intrinsics: np.ndarray  # f32 [3 3], normalised, principal point (0.5, 0.5)


def warp(
    image: np.ndarray,
    depth: np.ndarray,
    valid: np.ndarray,
    intrinsics: np.ndarray,
    width_height: tuple[int, int],
) -> View:
    """Returns the view of width_height pixels through the middle of a raw frame, as MoGe's benchmark loader takes it.

    image u8 [h w 3], depth f32 [h w] along the raw axis, valid bool [h w], intrinsics [3 3] normalised. The image is
    brought to the pitch of the view by a Lanczos filter and read bilinearly, black beyond the frame. Depth is picked,
    never mixed: at that pitch the nearest known pixel (`masked_nearest`), whose distance from the camera is then that
    of the pixel of the view. Depth is in the unit it came in; far pixels stay (`drop_far`).
    Raises ValueError if the arrays do not fit together and UserError if the intrinsics are no camera's.
    """
    height, width = depth.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8 or valid.shape != depth.shape:
        raise ValueError(
            f"image {image.dtype} {image.shape}, depth {depth.shape} and valid {valid.shape} are not one frame"
        )
    if min(width_height) < 1:
        raise ValueError(f"a view of {width_height} pixels")
    raw = _camera(intrinsics)
    turn = _turn(raw)
    new = _inscribed(raw, turn, width_height[0] / width_height[1])

    # The raw frame at the pitch of the view. A frame of just that size must not lose a column to rounding.
    scaled = [
        max(1, math.floor(size * new[i, i] / raw[i, i] * (1 + 1e-6)))
        for i, size in enumerate(width_height)
    ]
    x, y = _positions(raw, turn, new, width_height, scaled)
    shrunk = Image.fromarray(image).resize((scaled[0], scaled[1]), Image.Resampling.LANCZOS)

    rows, columns, known = masked_nearest(valid, (scaled[1], scaled[0]))
    row, column = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    inside = (row >= 0) & (row < scaled[1]) & (column >= 0) & (column < scaled[0])
    row, column = np.clip(row, 0, scaled[1] - 1), np.clip(column, 0, scaled[0] - 1)
    seen = inside & known[row, column]
    picked = np.where(seen, depth[rows[row, column], columns[row, column]], 0).astype(np.float64)
    ray = _length(raw, (column + 0.5) / scaled[0], (row + 0.5) / scaled[1])
    z = picked * ray / _length(new, *_centres(width_height, np.float64))
    return View(
        _bilinear(np.asarray(shrunk), x, y), z.astype(np.float32), seen, new.astype(np.float32)
    )


def drop_far(depth: np.ndarray, valid: np.ndarray, factor: float = 1000) -> np.ndarray:
    """Returns valid bool [h w] without the depths above `factor` times the 1% quantile of the valid ones.

    MoGe's benchmark loader does so in the view, with factor 1000, against what its maps hold of sky.
    """
    if not valid.any():
        return valid
    return valid & (depth <= factor * np.quantile(depth[valid], 0.01))


def masked_nearest(
    valid: np.ndarray, height_width: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which pixel of a map stands for each cell of another size: rows i64, columns i64, known bool, all [h w].

    It is the valid pixel nearest to the cell's centre, among those about the cell's own size around it, the first in
    reading order where several are; at least one pixel is looked at, so an enlarged map repeats pixels. Where none is
    valid, known is False and the indices mean nothing. The rule is `masked_nearest_resize` of
    EasternJournalist/utils3d, which MoGe uses; borders between pixels are decided in float32, as there.
    """
    row_of, row_distance = _windows(valid.shape[0], height_width[0])
    column_of, column_distance = _windows(valid.shape[1], height_width[1])
    nearest = np.full(height_width, np.inf, np.float32)
    rows, columns = np.zeros((2, *height_width), np.int64)
    for i in range(
        row_of.shape[1]
    ):  # over the pixels in a window: all windows at once would not fit large maps
        for j in range(column_of.shape[1]):
            distance = row_distance[:, i, None] + column_distance[None, :, j]
            closer = valid[row_of[:, i, None], column_of[None, :, j]] & (distance < nearest)
            np.copyto(nearest, distance, where=closer)
            np.copyto(rows, row_of[:, i, None], where=closer)
            np.copyto(columns, column_of[None, :, j], where=closer)
    return rows, columns, np.isfinite(nearest)


def _windows(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Per cell along one axis: the pixels that may stand for it and their squared distance from its centre, [cells k]."""
    f32 = np.float32
    extent = f32(max(1.0, size / cells))
    centre = (np.arange(cells, dtype=f32) + f32(0.5)) / f32(cells) * f32(size)
    first = np.rint(centre - extent / f32(2)).astype(np.int64)  # half to even
    pixel = first[:, None] + np.arange(math.ceil(extent))
    distance = (pixel.astype(f32) + f32(0.5) - centre[:, None]) ** 2
    return np.clip(pixel, 0, size - 1), np.where(
        (pixel >= 0) & (pixel < size), distance, f32(np.inf)
    )


def _camera(intrinsics: np.ndarray) -> np.ndarray:
    camera = np.asarray(intrinsics, np.float64)
    if camera.shape != (3, 3):
        raise ValueError(f"intrinsics have shape {camera.shape}, expected (3, 3)")
    if (
        not np.all(np.isfinite(camera))
        or camera[0, 0] <= 0
        or camera[1, 1] <= 0
        or np.any(camera[2] != (0, 0, 1))
    ):
        raise UserError(
            f"intrinsics {camera.tolist()} are no camera's",
            hint="write [[fx 0 cx] [0 fy cy] [0 0 1]], fx, fy > 0",
        )
    return camera


def _turn(raw: np.ndarray) -> np.ndarray:
    """The smallest rotation, f64 [3 3], that takes the ray through the middle of the frame to the axis (Rodrigues)."""
    middle = np.linalg.inv(raw) @ (0.5, 0.5, 1)
    middle /= np.linalg.norm(middle)
    x, y, cosine = (
        middle  # its cross product with the axis is (y, -x, 0); cosine > 0: cameras look forward
    )
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def _inscribed(raw: np.ndarray, turn: np.ndarray, aspect: float) -> np.ndarray:
    """The camera, f64 [3 3], of the largest view of that width : height around the turned axis inside the raw frame."""
    corners = _CORNERS @ (turn @ np.linalg.inv(raw)).T
    if np.any(corners[:, 2] <= 0):
        raise UserError(
            "the middle of the frame is more than 90 degrees from a corner",
            hint="check the intrinsics",
        )
    # Each edge and the camera span a plane n; it meets a diagonal (+-aspect, +-1) s of the view at this s at the nearest.
    n = np.cross(corners, np.roll(corners, -1, axis=0))
    reach = np.min(np.abs(n[:, 2]) / (aspect * np.abs(n[:, 0]) + np.abs(n[:, 1])))
    # No more than the unturned frame holds around its middle: the rule of the benchmark, though a turned one may see more.
    extent = min(2 * aspect * reach, 1 / raw[0, 0], aspect / raw[1, 1])
    return np.array([[1 / extent, 0, 0.5], [0, aspect / extent, 0.5], [0, 0, 1]])


def _positions(
    raw, turn, new, width_height: tuple[int, int], scaled: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where in the scaled raw frame each pixel of the view looks: column and row f32 [h w], whole at pixel centres.

    In float32 throughout: it decides alike here and in the reference which of two pixels is the nearer.
    """
    f32 = np.float32
    homography = raw.astype(f32) @ turn.T.astype(f32) @ np.linalg.inv(new.astype(f32))
    u, v = _centres(width_height, f32)
    x, y, z = (row[0] * u + row[1] * v + row[2] for row in homography)
    return x / z * f32(scaled[0]) - f32(0.5), y / z * f32(scaled[1]) - f32(0.5)


def _centres(
    width_height: tuple[int, int], dtype: type[np.floating]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the centres of pixels are: u [1 w], v [h 1]."""
    width, height = width_height
    return ((np.arange(width) + 0.5) / width).astype(dtype)[None], (
        (np.arange(height) + 0.5) / height
    ).astype(dtype)[:, None]


def _length(camera: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The distance from the camera, in units of depth, of what is seen at (u, v)."""
    y = (v - camera[1, 2]) / camera[1, 1]
    x = (u - camera[0, 2] - camera[0, 1] * y) / camera[0, 0]
    return np.sqrt(x * x + y * y + 1)


def _bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The picture u8 [h w 3] at positions x, y f32 [m n], whole at pixel centres, black around it -> u8 [m n 3]."""
    height, width = image.shape[0] + 2, image.shape[1] + 2
    pixels = np.pad(image, ((1, 1), (1, 1), (0, 0))).reshape(-1, 3)
    left, top = np.floor(x), np.floor(y)
    across, down = (x - left)[..., None], (y - top)[..., None]
    column, row = (
        np.clip(left.astype(np.int64) + 1, 0, width - 2),
        np.clip(top.astype(np.int64) + 1, 0, height - 2),
    )
    first = row * width + column

    def between(start):
        return (1 - across) * pixels[start] + across * pixels[start + 1]

    return np.rint((1 - down) * between(first) + down * between(first + width)).astype(np.uint8)
