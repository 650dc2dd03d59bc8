"""Surface normals of a record: its own, or planes fitted to its depth.

A normal is a unit vector in the camera's frame (x right, y down, z forward) that points out of the
surface, towards the camera: its product with the ray to the pixel is below 0. Unknown ones are 0.
"""

from __future__ import annotations

import numpy as np

from modality_forcing.data.records import Record

RADIUS = 1  # pixels around the center of a fit
MAX_ERROR = 4.0  # degrees: scenes of 64 px then have normals in 85% of pixels, 0.1 degrees off
_LEAST = 2 / 3  # of the pixels of a window are valid: rows and columns of pixels fix a plane


def of_record(record: Record) -> np.ndarray:
    """Returns normals f32 [h w 3]: the record's, or those of its depth and intrinsics."""
    if record.normals is not None:
        return record.normals
    return from_depth(record.depth, record.valid, record.intrinsics)


def from_depth(
    depth: np.ndarray,
    valid: np.ndarray,
    intrinsics: np.ndarray,
    *,
    radius: int = RADIUS,
    max_error: float = MAX_ERROR,
) -> np.ndarray:
    """Returns normals f32 [h w 3] of planes fitted to the valid depth around each pixel.

    Depth may be in any unit, and known up to scale.

    Args:
      depth: f32 [h w], along the optical axis.
      valid: bool [h w].
      intrinsics: [3 3] in pixels; with NaN all normals are unknown.
      radius: a window has 2 radius + 1 pixels a side.
      max_error: standard error of the direction in degrees, from the scatter of depth around the
        plane. It is larger at edges, creases, tight curves and in noise: there normals are unknown.
        So they are where depth is, or is so for a third of the window, as in sparse depth.
    """
    height, width = depth.shape
    if not np.isfinite(intrinsics).all():
        return np.zeros((height, width, 3), np.float32)
    # The inverse depth w of a plane is linear in pixel coordinates: w = m . (x, y, 1), and the
    # normal is along K^T m. Least squares is thus exact on planes at any slant.
    inverse = np.divide(1.0, depth, out=np.zeros((height, width)), where=valid)
    inverse /= max(inverse.max(initial=0), 1e-300)  # squares stay in the range of float32
    plane, variance, fits = _fit_planes(inverse.astype(np.float32), valid, radius)
    value, slope_x, slope_y = plane
    k = intrinsics.astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    # Row i of K^T is column i of K.
    offset = value - slope_x * x - slope_y * y
    normal = np.stack([k[0, i] * slope_x + k[1, i] * slope_y + k[2, i] * offset for i in range(3)])
    length = np.sqrt(np.einsum("ihw,ihw->hw", normal, normal))
    length = np.where(length > 0, length, 1.0)
    spread = np.hypot(k[0, 0], k[1, 1]) * np.sqrt(variance)  # of the slopes' part of the normal
    good = valid & fits & (spread <= np.tan(np.radians(max_error)) * length)
    return np.where(good, -normal / length, 0).astype(np.float32).transpose(1, 2, 0)


def _fit_planes(
    inverse: np.ndarray, valid: np.ndarray, radius: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Fits w = value + slope . offset in each window.

    Returns value and slopes along x and y; the variance of a slope, from the residuals; and where
    there are enough pixels to fit, bool [h w].
    """
    offsets = range(-radius, radius + 1)
    window = [(dy, dx) for dy in offsets for dx in offsets]
    padded_valid = np.pad(valid.astype(np.float32), radius)
    padded = np.pad(inverse, radius)
    height, width = valid.shape
    # Moments about each window's center: of 1, x, y, x^2, x y, y^2, and of w, x w, y w, w^2.
    n, sx, sy, sxx, sxy, syy, sw, sxw, syw, sww = np.zeros((10, height, width), np.float32)
    for dy, dx in window:
        at = slice(radius + dy, radius + dy + height), slice(radius + dx, radius + dx + width)
        # Less the center's: the residuals would otherwise be lost in rounding.
        m = padded_valid[at]
        w = (padded[at] - inverse) * m
        n += m
        sx += dx * m
        sy += dy * m
        sxx += dx * dx * m
        sxy += dx * dy * m
        syy += dy * dy * m
        sw += w
        sxw += dx * w
        syw += dy * w
        sww += w * w
    fits = n >= _LEAST * len(window)
    count = np.maximum(n, 1)
    xx, xy, yy = sxx - sx * sx / count, sxy - sx * sy / count, syy - sy * sy / count
    xw, yw, ww = sxw - sx * sw / count, syw - sy * sw / count, sww - sw * sw / count
    determinant = xx * yy - xy * xy
    fits &= determinant > 0
    determinant = np.where(fits, determinant, 1.0)
    slope_x = (yy * xw - xy * yw) / determinant
    slope_y = (xx * yw - xy * xw) / determinant
    value = inverse + (sw - slope_x * sx - slope_y * sy) / count
    residual = np.maximum(ww - slope_x * xw - slope_y * yw, 0) / np.maximum(n - 3, 1)
    # The larger of the two variances of the slopes.
    variance = residual * np.maximum(xx, yy) / determinant
    return (value, slope_x, slope_y), variance, fits
