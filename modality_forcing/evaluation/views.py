"""Views: the part of a benchmark's frame that is scored, and the square that the model sees of it.

Source: microsoft/MoGe, moge/test/dataloader.py. Raw frames have any size and a principal point
anywhere. The camera is rotated until its axis passes through the center of the frame, and sees the
largest rectangle of the requested aspect ratio inside the frame. Intrinsics are normalized:
coordinates (u, v) run from 0 to 1 over the frame, pixel j of w is centered at (j + 0.5) / w, and a
focal length of 1 / e sees an extent of e at distance 1.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from modality_forcing.data.resize import Window, crop_resize_image
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame
from modality_forcing.evaluation.resample import nearest_valid

# square: the largest square view around the center, at the model's resolution.
# moge: MoGe's view of the set, at its published size. frame: the frame as stored.
# For the last two, the model sees the whole view resized to its square.
ViewName = Literal["square", "moge", "frame"]

_CORNERS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1]])  # (u, v, 1), around the frame


class EvalFrame(NamedTuple):
    """A frame as it is scored: h x w pixels, which the model sees at r x r."""

    name: str
    model_image: np.ndarray  # u8 [r r 3], the input of the model
    image: np.ndarray  # u8 [h w 3], the same at the size of the target
    target: np.ndarray  # f32 [h w]
    valid: np.ndarray  # bool [h w]
    has_intrinsics: bool  # if not, the principal point is assumed at the center


class View(NamedTuple):
    """A warped frame."""

    image: np.ndarray  # u8 [h w 3]
    depth: np.ndarray  # f32 [h w], along the axis of this view's camera; 0 where not valid
    valid: np.ndarray  # bool [h w]
    intrinsics: np.ndarray  # f32 [3 3], normalized, principal point (0.5, 0.5)


def parse_view(text: str) -> ViewName:
    """Returns the name of a view; raises UserError with the known ones."""
    names = get_args(ViewName)
    if text not in names:
        raise UserError(f"unknown view {text!r}", hint=f"choose one of {', '.join(names)}")
    return text  # pyright: ignore[reportReturnType]


def view_size(benchmark: Benchmark, view: ViewName, resolution: int) -> tuple[int, int] | None:
    """Returns (width, height) of the view, or None where every frame keeps its own size."""
    return {"square": (resolution, resolution), "moge": benchmark.size, "frame": None}[view]


def make_eval_frame(
    frame: Frame, benchmark: Benchmark, view: ViewName, resolution: int
) -> EvalFrame:
    """Returns a frame as a view shows it; the model has resolution x resolution pixels.

    "square" and "moge" equal MoGe's benchmark loader at those sizes, its limit on far depth
    included. Without intrinsics the principal point is assumed at the center and nothing is
    rotated. Raises UserError for invalid intrinsics.
    """
    size = view_size(benchmark, view, resolution)
    image, target, valid = frame.image, frame.depth, frame.valid
    if size is not None:
        intrinsics = frame.intrinsics
        if intrinsics is None:
            intrinsics = _centered_intrinsics(*target.shape)
        warped = warp(image, target, valid, intrinsics, width_height=size)
        image, target = warped.image, warped.depth
        valid = drop_far(warped.depth, warped.valid)
    model_image = image
    if view != "square":
        model_image = crop_resize_image(image, Window(0, 0, *target.shape), resolution)
    has_intrinsics = frame.intrinsics is not None
    return EvalFrame(frame.name, model_image, image, target, valid, has_intrinsics)


def _centered_intrinsics(height: int, width: int) -> np.ndarray:
    """Returns normalized intrinsics of square pixels; without rotation the focal length cancels."""
    return np.array([[1, 0, 0.5], [0, width / height, 0.5], [0, 0, 1]], np.float32)


def warp(
    image: np.ndarray,
    depth: np.ndarray,
    valid: np.ndarray,
    intrinsics: np.ndarray,
    *,
    width_height: tuple[int, int],
) -> View:
    """Returns the view of width_height pixels around the center of a frame, as MoGe's loader.

    The image is Lanczos-filtered to the pixel pitch of the view and sampled bilinearly, black
    beyond the frame. Depth is never interpolated: it is the nearest valid pixel's at that pitch
    (`nearest_valid`), whose distance from the camera becomes that of the view's pixel. Far pixels
    are kept (`drop_far`).

    Args:
      image: u8 [h w 3].
      depth: f32 [h w] along the raw camera axis, in any unit.
      valid: bool [h w].
      intrinsics: f32 [3 3], normalized.
      width_height: size of the view.

    Raises ValueError if the arrays do not match, UserError for invalid intrinsics.
    """
    height, width = depth.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8 or valid.shape != depth.shape:
        shapes = f"{image.dtype} {image.shape}, depth {depth.shape} and valid {valid.shape}"
        raise ValueError(f"image {shapes} are not one frame")
    if min(width_height) < 1:
        raise ValueError(f"a view of {width_height} pixels")
    raw = _check_intrinsics(intrinsics)
    rotation = _center_rotation(raw)
    new = _inscribed_camera(raw, rotation, width_height[0] / width_height[1])

    # The raw frame at the pitch of the view. A frame of just that size must not lose a column to
    # rounding.
    columns, rows = (
        max(1, math.floor(size * new[i, i] / raw[i, i] * (1 + 1e-6)))
        for i, size in enumerate(width_height)
    )
    # Float32 throughout decides as the reference does which of two pixels is nearer.
    f32 = np.float32
    homography = raw.astype(f32) @ rotation.T.astype(f32) @ np.linalg.inv(new.astype(f32))
    u, v = _pixel_centers(width_height, f32)
    x, y, z = (row[0] * u + row[1] * v + row[2] for row in homography)
    x, y = x / z * f32(columns) - f32(0.5), y / z * f32(rows) - f32(0.5)

    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS)
    source_row, source_column, source_valid = nearest_valid(valid, (rows, columns))
    row, column = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    row, column = np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)
    seen = inside & source_valid[row, column]
    picked = depth[source_row[row, column], source_column[row, column]]
    picked = np.where(seen, picked, 0).astype(np.float64)
    ray = _ray_length(raw, (column + 0.5) / columns, (row + 0.5) / rows)
    z_depth = picked * ray / _ray_length(new, *_pixel_centers(width_height, np.float64))
    warped = _sample_bilinear(np.asarray(resized), x, y)
    return View(warped, z_depth.astype(np.float32), seen, new.astype(np.float32))


def drop_far(depth: np.ndarray, valid: np.ndarray, factor: float = 1000) -> np.ndarray:
    """Returns valid bool [h w] without depths above `factor` times the 1% quantile.

    MoGe's benchmark loader does so, with factor 1000, against sky in its maps.
    """
    if not valid.any():
        return valid
    return valid & (depth <= factor * np.quantile(depth[valid], 0.01))


def _check_intrinsics(intrinsics: np.ndarray) -> np.ndarray:
    camera = np.asarray(intrinsics, np.float64)
    if camera.shape != (3, 3):
        raise ValueError(f"intrinsics have shape {camera.shape}, expected (3, 3)")
    focal = camera[0, 0] > 0 and camera[1, 1] > 0
    if not focal or not np.all(np.isfinite(camera)) or np.any(camera[2] != (0, 0, 1)):
        raise UserError(
            f"intrinsics {camera.tolist()} are not a pinhole camera",
            hint="write [[fx 0 cx] [0 fy cy] [0 0 1]], fx, fy > 0",
        )
    return camera


def _center_rotation(raw: np.ndarray) -> np.ndarray:
    """Returns the least rotation f64 [3 3] from the central ray to the axis (Rodrigues)."""
    center = np.linalg.inv(raw) @ (0.5, 0.5, 1)
    center /= np.linalg.norm(center)
    # The cross product with the axis is (y, -x, 0); cosine > 0, as cameras look forward.
    x, y, cosine = center
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def _inscribed_camera(raw: np.ndarray, rotation: np.ndarray, aspect: float) -> np.ndarray:
    """Returns the camera f64 [3 3] of the largest view of that aspect ratio in the frame."""
    corners = _CORNERS @ (rotation @ np.linalg.inv(raw)).T
    if np.any(corners[:, 2] <= 0):
        raise UserError(
            "the center of the frame is more than 90 degrees from a corner",
            hint="check the intrinsics",
        )
    # Each edge and the camera span a plane n, which meets a diagonal (+-aspect, +-1) s of the view
    # at this s at the nearest.
    n = np.cross(corners, np.roll(corners, -1, axis=0))
    reach = np.min(np.abs(n[:, 2]) / (aspect * np.abs(n[:, 0]) + np.abs(n[:, 1])))
    # No more than the unrotated frame holds around its center: the benchmark's rule, although a
    # rotated camera may see more.
    extent = min(2 * aspect * reach, 1 / raw[0, 0], aspect / raw[1, 1])
    return np.array([[1 / extent, 0, 0.5], [0, aspect / extent, 0.5], [0, 0, 1]])


def _pixel_centers(
    width_height: tuple[int, int], dtype: type[np.floating]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the normalized coordinates of pixel centers: u [1 w], v [h 1]."""
    u, v = (((np.arange(size) + 0.5) / size).astype(dtype) for size in width_height)
    return u[None], v[:, None]


def _ray_length(camera: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the distance from the camera over the depth of points seen at (u, v)."""
    y = (v - camera[1, 2]) / camera[1, 1]
    x = (u - camera[0, 2] - camera[0, 1] * y) / camera[0, 0]
    return np.sqrt(x * x + y * y + 1)


def _sample_bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Samples an image u8 [h w 3] at positions x, y f32 [m n], black outside: u8 [m n 3]."""
    height, width = image.shape[0] + 2, image.shape[1] + 2
    pixels = np.pad(image, ((1, 1), (1, 1), (0, 0))).reshape(-1, 3)
    left, top = np.floor(x), np.floor(y)
    right_weight, lower_weight = (x - left)[..., None], (y - top)[..., None]
    column = np.clip(left.astype(np.int64) + 1, 0, width - 2)
    row = np.clip(top.astype(np.int64) + 1, 0, height - 2)
    first = row * width + column

    def blend_row(start):
        return (1 - right_weight) * pixels[start] + right_weight * pixels[start + 1]

    upper, lower = blend_row(first), blend_row(first + width)
    return np.rint((1 - lower_weight) * upper + lower_weight * lower).astype(np.uint8)
