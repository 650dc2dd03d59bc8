"""Camera models: projection, unprojection and undistortion of images.

Pixels are (x, y), right and down, and the center of the first pixel is at (0, 0): calibrations that
count from its corner (COLMAP, ETH3D) must be shifted by half a pixel. Camera axes: x right, y down,
z forward.

Models and the order of their distortion terms, after J. Brown 1971 (tangential) and J. Weng 1992
(thin prism):

pinhole             none
radial              k1 [k2], COLMAP's SIMPLE_RADIAL and RADIAL
brown               k1 k2 p1 p2 [k3], OpenCV's default
opencv_fisheye      k1 k2 k3 k4 of the angle off the axis, OpenCV's fisheye
thin_prism_fisheye  k1 k2 p1 p2 k3 k4 sx1 sy1, COLMAP's THIN_PRISM_FISHEYE, which ETH3D uses
fisheye624          k0..k5 p0 p1 s0..s3, Aria's: as above, but prism and tangential terms are
                    functions of the distorted point
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.polynomial.polynomial import polyder, polyroots, polyval

Model = Literal["pinhole", "radial", "brown", "opencv_fisheye", "thin_prism_fisheye", "fisheye624"]

_COUNTS: dict[str, tuple[int, ...]] = {
    "pinhole": (0,),
    "radial": (1, 2),
    "brown": (4, 5),
    "opencv_fisheye": (4,),
    "thin_prism_fisheye": (8,),
    "fisheye624": (12,),
}
_FISHEYES = ("opencv_fisheye", "thin_prism_fisheye", "fisheye624")
_MAX_ANGLE = np.radians(89.9)  # of a fisheye off its axis: beyond, x / z and y / z do not exist
_TINY = 1e-12
_TOLERANCE = 1e-9  # of an unprojected direction that is projected again, in focal lengths


@dataclass(frozen=True)
class Camera:
    """One camera. Raises ValueError for a wrong number of distortion terms.

    size: (h, w). fx, fy, cx, cy: in pixels.
    """

    model: Model
    size: tuple[int, int]
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.distortion) not in _COUNTS[self.model]:
            raise ValueError(f"{self.model} camera with {len(self.distortion)} distortion terms")
        if not (
            self.fx > 0
            and self.fy > 0
            and np.isfinite([self.fx, self.fy, self.cx, self.cy, *self.distortion]).all()
        ):
            raise ValueError(f"camera with numbers out of range: {self}")

    @property
    def matrix(self) -> np.ndarray:
        """The f32 [3 3] intrinsics without the distortion."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float32)

    @property
    def is_pinhole(self) -> bool:
        """Whether the camera has no distortion."""
        return self.model not in _FISHEYES and not any(self.distortion)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels f64 [n 2] of points [n 3], and bool [n], which of them are valid.

        Invalid are points behind the camera and those so far off the axis that the polynomial of
        the lens folds back, which would mix them with others. Pixels may be outside of the image.
        """
        points = np.asarray(points, np.float64)
        ok = points[:, 2] > 0
        z = np.where(ok, points[:, 2], 1.0)
        x, y = points[:, 0] / z, points[:, 1] / z
        if not self.is_pinhole:
            lens = _lens(self.model, self.distortion)
            if lens.fisheye:
                x, y = _distort_angle(x, y)
            ok &= np.hypot(x, y) < lens.limit
            x, y = lens.distort(np.where(ok, x, 0.0), np.where(ok, y, 0.0))
        return np.stack([x * self.fx + self.cx, y * self.fy + self.cy], axis=1), ok

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Returns directions f64 [n 2], (x / z, y / z), of pixels [n 2]; NaN outside the lens."""
        pixels = np.asarray(pixels, np.float64)
        x, y = (pixels[:, 0] - self.cx) / self.fx, (pixels[:, 1] - self.cy) / self.fy
        if not self.is_pinhole:
            lens = _lens(self.model, self.distortion)
            x, y = lens.undistort(x, y)
            if lens.fisheye:
                x, y = _undistort_angle(x, y)
        return np.stack([x, y], axis=1)


def enclosed_pinhole(camera: Camera) -> Camera:
    """Returns a pinhole camera of the same size, axis and principal point, for `undistort`.

    Its focal lengths are the camera's, times the factor at which it just sees nothing outside of
    the camera's image.
    """
    cx, cy, fx, fy = camera.cx, camera.cy, camera.fx, camera.fy
    h, w = camera.size
    rows, columns = np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64)
    sides = {  # of the image, as directions
        "left": camera.unproject(np.stack([0 * rows, rows], 1))[:, 0],
        "right": camera.unproject(np.stack([0 * rows + w - 1, rows], 1))[:, 0],
        "top": camera.unproject(np.stack([columns, 0 * columns], 1))[:, 1],
        "bottom": camera.unproject(np.stack([columns, 0 * columns + h - 1], 1))[:, 1],
    }
    zoom = max(
        0.0,  # before NaN, of a side that the lens does not see
        cx / fx / -np.nanmax(sides["left"]),
        (w - 1 - cx) / fx / np.nanmin(sides["right"]),
        cy / fy / -np.nanmax(sides["top"]),
        (h - 1 - cy) / fy / np.nanmin(sides["bottom"]),
    )
    return Camera("pinhole", camera.size, fx * float(zoom), fy * float(zoom), cx, cy)


def undistort(
    image: np.ndarray, depth: np.ndarray, valid: np.ndarray, camera: Camera, *, to: Camera
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image u8 [h w 3], depth f32 [h w] and valid bool [h w] as the pinhole `to` sees them.

    The image is interpolated bilinearly, depth is that of the nearest pixel. Outside the camera's
    image the result is black and invalid. Depth along the axis keeps its value, since the axis is
    the same; convert ranges to depth first (`z_from_range`). For dense depth: sparse points should
    be projected again instead.
    Raises ValueError if the arrays do not have the camera's size.
    """
    if {image.shape[:2], depth.shape, valid.shape} != {camera.size}:
        raise ValueError(
            f"arrays of {image.shape}, {depth.shape}, {valid.shape} for a camera of {camera.size}"
        )
    x, y, seen = _remap_grid(camera, to)
    height, width = camera.size
    column, row = (np.rint(at).astype(np.int32) for at in (x, y))
    known = seen & valid[row, column]
    picked = np.where(known, depth[row, column], 0).astype(np.float32)
    left, top = (
        np.minimum(x.astype(np.int32), width - 2),
        np.minimum(y.astype(np.int32), height - 2),
    )
    across, down = (x - left)[..., None], (y - top)[..., None]
    pixels = image.reshape(-1, 3)
    at = top * width + left
    upper = pixels[at] * (1 - across) + pixels[at + 1] * across
    lower = pixels[at + width] * (1 - across) + pixels[at + width + 1] * across
    mixed = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    mixed[~seen] = 0
    return mixed, picked, known


def z_from_range(distance: np.ndarray, camera: Camera) -> np.ndarray:
    """Returns depth f32 [h w] of ranges [h w] along the rays; NaN outside the lens."""
    if distance.shape != camera.size:
        raise ValueError(f"distances of {distance.shape} for a camera of {camera.size}")
    return (distance / _lengths(camera)).astype(np.float32)


def pixel_grid(size: tuple[int, int]) -> np.ndarray:
    """Returns the centers f64 [h w 2], (x, y), of all pixels of an (h, w) raster."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([columns, rows], axis=-1).astype(np.float64)


@lru_cache(maxsize=8)
def _lengths(camera: Camera) -> np.ndarray:
    """Returns the length f32 [h w] of each pixel's ray per unit of depth."""
    directions = camera.unproject(pixel_grid(camera.size).reshape(-1, 2))
    return np.sqrt(1 + (directions**2).sum(axis=1)).reshape(camera.size).astype(np.float32)


@lru_cache(maxsize=4)
def _remap_grid(camera: Camera, to: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels x, y f32 [h w] of `camera` seen by each pixel of `to`, and bool [h w].

    The mask is False outside of the camera's image.
    """
    directions = to.unproject(pixel_grid(to.size).reshape(-1, 2))
    pixels, ok = camera.project(np.concatenate([directions, np.ones((len(directions), 1))], axis=1))
    x, y = pixels.T.reshape(2, *to.size)
    height, width = camera.size
    seen = ok.reshape(to.size) & (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    x, y = (
        np.where(seen, np.clip(at, 0, n - 1), 0).astype(np.float32)
        for at, n in ((x, width), (y, height))
    )
    return x, y, seen


@dataclass(frozen=True)
class _Lens:
    """The distortion of points in the plane z = 1, for a fisheye at a radius equal to the angle."""

    fisheye: bool
    radial: np.ndarray  # 1 + k1 q + k2 q^2 ..., of q = r^2, constant first
    tangential: tuple[float, float]  # that of 2 x^2 + r^2 in x, that of 2 y^2 + r^2 in y
    prism: tuple[float, float, float, float]  # of r^2 and r^4 in x, the same in y
    after_radial: bool  # tangential and prism terms are functions of the radially distorted point
    limit: float  # the radius from which on the radial part decreases

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = polyval(x * x + y * y, self.radial)
        far_x, far_y = x * s, y * s
        shift = self._shift(far_x, far_y) if self.after_radial else self._shift(x, y)
        return far_x + shift[0], far_y + shift[1]

    def undistort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverts `distort` by a table of the radial part, then Newton's method for the rest."""
        guess_x, guess_y = self._radially_undistorted(x, y)
        for _ in range(20):
            got_x, got_y = self.distort(guess_x, guess_y)
            miss_x, miss_y = x - got_x, y - got_y
            if np.max(np.abs(miss_x) + np.abs(miss_y), initial=0) < _TINY:
                break
            (a, b), (c, d) = self._slopes(guess_x, guess_y)
            determinant = a * d - b * c
            determinant = np.where(np.abs(determinant) < _TINY, np.inf, determinant)
            guess_x = guess_x + (d * miss_x - b * miss_y) / determinant
            guess_y = guess_y + (a * miss_y - c * miss_x) / determinant
            # Steps beyond the fold would converge on its other side.
            out = np.hypot(guess_x, guess_y) / self.limit
            shorten = np.where(out > 1, out, 1)
            guess_x, guess_y = guess_x / shorten, guess_y / shorten
        got_x, got_y = self.distort(guess_x, guess_y)
        error = np.abs(x - got_x) + np.abs(y - got_y)
        failed = (error > _TOLERANCE) | (np.hypot(guess_x, guess_y) >= self.limit)
        return np.where(failed, np.nan, guess_x), np.where(failed, np.nan, guess_y)

    def _radially_undistorted(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        radius = np.hypot(x, y)
        most, reach = float(np.max(radius, initial=_TINY)), 1.0
        while reach < self.limit and reach * polyval(reach**2, self.radial) < most:
            reach *= 1.5
        table = np.linspace(0, min(reach, self.limit), 2048)
        back = np.interp(radius, table * polyval(table**2, self.radial), table)
        ratio = back / np.maximum(radius, _TINY)
        return x * ratio, y * ratio

    def _shift(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (px, py), (sx, sx2, sy, sy2) = self.tangential, self.prism
        q = x * x + y * y
        both = 2 * x * y
        return (
            px * (q + 2 * x * x) + py * both + q * (sx + sx2 * q),
            py * (q + 2 * y * y) + px * both + q * (sy + sy2 * q),
        )

    def _slopes(self, x: np.ndarray, y: np.ndarray) -> tuple[tuple, tuple]:
        """Returns the derivatives of distorted x and distorted y, each by x and by y."""
        q = x * x + y * y
        s, rise = polyval(q, self.radial), polyval(q, polyder(self.radial))
        a, b, d = s + 2 * x * x * rise, 2 * x * y * rise, s + 2 * y * y * rise
        if not self.after_radial:
            (e, f), (g, h) = self._shift_slopes(x, y)
            return (a + e, b + f), (b + g, d + h)
        (e, f), (g, h) = self._shift_slopes(x * s, y * s)
        return (a + e * a + f * b, b + e * b + f * d), (b + g * a + h * b, d + g * b + h * d)

    def _shift_slopes(self, x: np.ndarray, y: np.ndarray) -> tuple[tuple, tuple]:
        (px, py), (sx, sx2, sy, sy2) = self.tangential, self.prism
        q = x * x + y * y
        across, down = sx + 2 * sx2 * q, sy + 2 * sy2 * q
        return (
            (6 * px * x + 2 * py * y + 2 * x * across, 2 * px * y + 2 * py * x + 2 * y * across),
            (2 * py * x + 2 * px * y + 2 * x * down, 6 * py * y + 2 * px * x + 2 * y * down),
        )


@lru_cache(maxsize=256)
def _lens(model: Model, terms: tuple[float, ...]) -> _Lens:
    radial: tuple[float, ...] = ()
    tangential, prism = (0.0, 0.0), (0.0, 0.0, 0.0, 0.0)
    if model in ("radial", "opencv_fisheye"):
        radial = terms
    elif model == "brown":
        radial, tangential = (*terms[:2], *terms[4:]), (terms[3], terms[2])
    elif model == "thin_prism_fisheye":
        radial, tangential = (*terms[:2], *terms[4:6]), (terms[3], terms[2])
        prism = (terms[6], 0.0, terms[7], 0.0)
    elif model == "fisheye624":
        radial, tangential = terms[:6], (terms[6], terms[7])
        prism = (terms[8], terms[9], terms[10], terms[11])
    series = np.array([1.0, *radial])
    fisheye = model in _FISHEYES
    limit = min(_fold(series), _MAX_ANGLE if fisheye else np.inf)
    return _Lens(fisheye, series, tangential, prism, model == "fisheye624", limit)


def _fold(series: np.ndarray) -> float:
    """Returns the least r at which r (1 + k1 r^2 + ...) stops increasing, or inf."""
    slope = np.trim_zeros(series * (2 * np.arange(len(series)) + 1), "b")
    roots = polyroots(slope) if len(slope) > 1 else np.zeros(0)
    is_real = np.abs(roots.imag) < 1e-9 * np.maximum(1.0, np.abs(roots.real))
    turns = roots.real[is_real & (roots.real > 0)]
    return float(np.sqrt(turns.min())) if len(turns) else np.inf


def _distort_angle(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves points of the plane z = 1 to a radius equal to their angle off the axis."""
    radius = np.hypot(x, y)
    ratio = np.where(radius > _TINY, np.arctan(radius) / np.maximum(radius, _TINY), 1.0)
    return x * ratio, y * ratio


def _undistort_angle(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle = np.hypot(x, y)
    ratio = np.where(angle > _TINY, np.tan(angle) / np.maximum(angle, _TINY), 1.0)
    return x * ratio, y * ratio
