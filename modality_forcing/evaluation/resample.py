"""Nearest resampling of depth maps that ignores invalid pixels, and bilinear resizing.

The nearest rule is `masked_nearest_resize` of EasternJournalist/utils3d, which MoGe's evaluation
uses for views and for alignment. Borders between pixels are decided in float32, as there: windows
begin half way between pixels, where rounding decides.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Shaped
from PIL import Image


def subsample(
    pred: Float[Array | np.ndarray, "b h w"],
    target: Float[Array | np.ndarray, "b h w"],
    valid: Bool[Array | np.ndarray, "b h w"],
    cells: int = 64,
) -> tuple[Float[Array, "b n"], Float[Array, "b n"], Bool[Array, "b n"]]:
    """Returns pred, target and validity of the valid pixel nearest to the center of each cell.

    The grid has cells x cells cells. An image of at most `cells` a side is returned as it is, each
    pixel once, as newer versions of utils3d have it. Older ones (078890a) fill all cells and so
    weight some pixels more, unless `cells` is a multiple of both sides.
    """
    pred, target, valid = jnp.asarray(pred), jnp.asarray(target), jnp.asarray(valid)
    b, height, width = pred.shape
    if height <= cells and width <= cells:
        return pred.reshape(b, -1), target.reshape(b, -1), valid.reshape(b, -1)
    rows, row_distance = _windows(height, cells)
    cols, col_distance = _windows(width, cells)
    # [cells * cells, window], windows in row-major order: argmin settles ties as the reference.
    distance = _window_grid(row_distance, col_distance)
    source = _window_grid(rows * width, cols)

    def one(image):
        pred, target, valid = (x.reshape(-1) for x in image)
        masked = jnp.where(valid[source], distance, jnp.inf)
        nearest = jnp.argmin(masked, axis=-1, keepdims=True)
        pixel = jnp.take_along_axis(jnp.asarray(source), nearest, axis=-1)[:, 0]
        return pred[pixel], target[pixel], jnp.isfinite(jnp.min(masked, axis=-1))

    # One image at a time: the windows of a large image take tens of megabytes.
    return lax.map(one, (pred, target, valid))


def thin_columns(maps: Shaped[Array, "b h w"], side: int | None) -> Shaped[Array, "b h v"]:
    """Returns all rows and every (longer side / `side`)-th column of maps longer than `side`.

    Marigold's alignment at 1024 px (ETH3D) keeps these pixels: it passes [1 h w] to
    torch.nn.Upsample, which takes the rows for channels. Column j comes from floor(j / share), in
    float32.
    """
    longest = max(maps.shape[1:])
    if side is None or longest <= side:
        return maps
    share = side / longest
    kept = np.arange(max(1, int(maps.shape[2] * share)), dtype=np.float32)
    return maps[:, :, np.floor(kept * np.float32(1 / share)).astype(np.int32)]


def nearest_valid(
    valid: np.ndarray, height_width: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row i64, column i64 and validity bool [h w] of the source pixel of each cell.

    It is the valid pixel nearest to the cell's center within a window of the cell's own size, the
    first in row-major order on ties. The window holds at least one pixel, so enlarging repeats
    pixels. Where no pixel is valid, the indices are meaningless.
    """
    row_of, row_distance = _windows(valid.shape[0], height_width[0])
    column_of, column_distance = _windows(valid.shape[1], height_width[1])
    nearest = np.full(height_width, np.inf, np.float32)
    rows, columns = np.zeros((2, *height_width), np.int64)
    # Over the pixels in a window: all windows at once would not fit large maps.
    for i in range(row_of.shape[1]):
        for j in range(column_of.shape[1]):
            distance = row_distance[:, i, None] + column_distance[None, :, j]
            closer = valid[row_of[:, i, None], column_of[None, :, j]] & (distance < nearest)
            np.copyto(nearest, distance, where=closer)
            np.copyto(rows, row_of[:, i, None], where=closer)
            np.copyto(columns, column_of[None, :, j], where=closer)
    return rows, columns, np.isfinite(nearest)


def resize_prediction(pred: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a predicted map f32 [r c] at (h, w) pixels, bilinear: predictions have no holes."""
    if pred.shape == size:
        return pred
    image = Image.fromarray(pred.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _windows(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, per cell along one axis, pixels in its window and squared distances, [cells k].

    Windows of neighboring cells overlap, so a lone pixel may represent several cells.
    """
    f32 = np.float32
    extent = f32(max(1.0, size / cells))
    center = (np.arange(cells, dtype=f32) + f32(0.5)) / f32(cells) * f32(size)
    first = np.rint(center - extent / f32(2)).astype(np.int32)  # half to even
    pixel = first[:, None] + np.arange(math.ceil(extent), dtype=np.int32)
    distance = (pixel.astype(f32) + f32(0.5) - center[:, None]) ** 2
    inside = (pixel >= 0) & (pixel < size)
    return np.clip(pixel, 0, size - 1), np.where(inside, distance, f32(np.inf))


def _window_grid(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Returns the sum of each pair of a row's and a column's window: [c k], [c m] -> [c*c k*m]."""
    grid = rows[:, None, :, None] + cols[None, :, None, :]
    return grid.reshape(rows.shape[0] * cols.shape[0], -1)
