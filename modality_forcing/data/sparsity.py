"""Sparse depth as real sensors measure it: patterns that remove depth from a dense record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError

Pattern = Callable[[Record, np.random.Generator], np.ndarray]

MAX_DENSITY = 0.35  # largest fraction of pixels that a sparse pattern keeps
_FALLBACK_FOV = 60.0  # degrees, where a record has no intrinsics
_MIN_GRADIENT = 2.0  # gray levels (of 255) per pixel; feature detectors ignore less
_TINY = 1e-6


def uniform(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Returns random pixels, 1% to 13% of the image, bool [h w]."""
    wanted = round(rng.uniform(0.01, 0.13) * record.valid.size)
    return _highest(rng.random(record.valid.shape), record.valid, wanted)


def lidar(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Returns scan lines of a spinning sensor, bool [h w]: rings of equal elevation with dropouts.

    The rings follow the intrinsics (or a field of view of 60 degrees), slightly tilted, below a
    random elevation; the upper third of the image is empty.
    """
    height, width = record.valid.shape
    focal_x, focal_y, center_x, center_y = _pinhole(record)
    x = (np.arange(width) - center_x) / focal_x
    y = (np.arange(height)[:, None] - center_y) / focal_y
    roll = np.radians(rng.uniform(-3, 3))
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    below = np.arctan2(y, np.hypot(x, 1))
    top = np.arctan2((rng.uniform(0.35, 0.55) * height - center_y) / focal_y, 1)
    pixel = 1 / focal_y
    bottom = np.arctan2((height - 1 - center_y) / focal_y, 1)
    spacing = max(2.2 * pixel, (bottom - top) / rng.integers(6, 17))
    ring = (below - top) / spacing
    mask = (ring > -0.5) & (np.abs(ring - np.round(ring)) * spacing < 0.5 * pixel)
    mask &= rng.random(mask.shape) > rng.uniform(0.1, 0.5)
    # A sector is missing where the sensor is blocked or the surface absorbs the pulse.
    start, extent = rng.integers(width), int(rng.uniform(0, 0.2) * width)
    mask[:, start : start + extent] = False
    mask[: height // 3 + 1] = False
    return _capped(mask & record.valid, rng)


def sfm(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Returns points as of structure from motion, bool [h w]: clusters on gradients, 0.5% to 6%.

    Strong gradients are preferred; a surface without texture gets no point.
    """
    height, width = record.valid.shape
    gray = record.image.astype(np.float32).mean(axis=2)
    down, across = np.gradient(gray)
    strength = np.hypot(down, across)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    density = np.full((height, width), 0.05, np.float32)
    for _ in range(int(rng.integers(2, 6))):
        row, column = rng.uniform(0, 1, 2) * (height, width)
        radius = rng.uniform(0.08, 0.3) * max(height, width)
        density += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
    wanted = round(rng.uniform(0.005, 0.06) * record.valid.size)
    # The largest log weights + Gumbel noise are a weighted sample without replacement.
    gumbel = -np.log(-np.log(rng.uniform(1e-12, 1, strength.shape)))
    score = np.log(strength**1.5 * density + _TINY) + gumbel
    return _highest(score, record.valid & (strength > _MIN_GRADIENT), wanted)


def sensor(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Returns what a structured-light or time-of-flight camera sees, bool [h w].

    A dense window with holes: at depth edges (at times also next to them, in the shadow of the
    projector), beyond a maximum range, and in most pixels of very dark surfaces.
    """
    valid, shape = record.valid, record.valid.shape
    side = np.sqrt(rng.uniform(0.25, 0.5))
    height, width = (max(1, round(side * n)) for n in shape)
    top = int(rng.integers(0, shape[0] - height + 1))
    left = int(rng.integers(0, shape[1] - width + 1))
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    hole = depth_edges(record.depth, valid)
    # The projector is to one side of the camera, and so is its shadow at every edge.
    shadow, edge = np.s_[:, 1:], np.s_[:, :-1]
    if rng.random() >= 0.5:
        shadow, edge = edge, shadow
    if rng.random() < 0.5:
        hole[shadow] |= hole[edge].copy()
    if valid.any():
        mask &= record.depth <= np.quantile(record.depth[valid], rng.uniform(0.7, 1.0))
    dark = record.image.max(axis=2) < 40
    mask &= ~(dark & (rng.random(shape) < 0.7))
    return _capped(mask & valid & ~hole, rng)


def missing(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Returns an empty mask, bool [h w]: an image without depth."""
    return np.zeros(record.valid.shape, bool)


def dense(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Returns all valid pixels, bool [h w]: a synthetic map, or one that was completed."""
    return record.valid


PATTERNS: dict[str, Pattern] = {
    "dense": dense,
    "uniform": uniform,
    "lidar": lidar,
    "sfm": sfm,
    "sensor": sensor,
    "missing": missing,
}
"""By name. Each returns bool [h w] within record.valid; all but "dense" keep at most `MAX_DENSITY`
of the pixels."""

DEFAULT_MIXTURE: Mapping[str, float] = {
    "uniform": 0.5,
    "lidar": 0.07,
    "sfm": 0.15,
    "sensor": 0.2,
    "missing": 0.08,
}
"""Weights. On the procedural scenes they keep less than 10% of the pixels on average."""


def with_dense(share: float) -> dict[str, float]:
    """Returns the default mixture with a share of dense maps."""
    sparse = {name: round((1 - share) * w, 6) for name, w in DEFAULT_MIXTURE.items()}
    return sparse | {"dense": share} if share else dict(DEFAULT_MIXTURE)


def sparsify(
    record: Record, rng: np.random.Generator, weights: Mapping[str, float] = DEFAULT_MIXTURE
) -> Record:
    """Applies one pattern, sampled by weight; depth is 0 where it is no longer valid.

    Raises UserError for an unknown pattern, a negative weight, or weights that sum to 0.
    """
    names = tuple(weights)
    if unknown := [name for name in names if name not in PATTERNS]:
        hint = f"known are {', '.join(PATTERNS)}"
        raise UserError(f"unknown sparse pattern {unknown[0]!r}", hint=hint)
    p = np.array([weights[name] for name in names], np.float64)
    if not len(p) or not np.all(np.isfinite(p)) or p.min() < 0 or p.sum() <= 0:
        hint = "need numbers >= 0 that are not all 0"
        raise UserError(f"sparse pattern weights {dict(weights)}", hint=hint)
    pattern = PATTERNS[names[int(rng.choice(len(names), p=p / p.sum()))]]
    mask = pattern(record, rng)
    return replace(record, valid=mask, depth=np.where(mask, record.depth, np.float32(0)))


def depth_edges(depth: np.ndarray, valid: np.ndarray, ratio: float = 1.1) -> np.ndarray:
    """Returns where depth jumps by more than a ratio or becomes invalid, bool [h w].

    Pixels on both sides of a jump are included.
    """
    log = np.log(np.where(valid & (depth > 0), depth, np.float32(1)))
    edges = np.zeros(depth.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        jump = np.abs(log[one] - log[other]) > np.log(ratio)
        jump |= valid[one] != valid[other]
        edges[one] |= jump
        edges[other] |= jump
    return edges


def _pinhole(record: Record) -> tuple[float, float, float, float]:
    height, width = record.valid.shape
    k = record.intrinsics
    if np.all(np.isfinite(k)) and k[0, 0] > 0 and k[1, 1] > 0:
        return float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])
    focal = 0.5 * max(height, width) / np.tan(np.radians(_FALLBACK_FOV) / 2)
    return focal, focal, (width - 1) / 2, (height - 1) / 2


def _highest(score: np.ndarray, valid: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` valid pixels of highest score: at least one, all if there are fewer."""
    candidates = np.flatnonzero(valid)
    count = min(max(count, 1), len(candidates))
    mask = np.zeros(valid.size, bool)
    if count:
        order = np.argpartition(-score.ravel()[candidates], count - 1)[:count]
        mask[candidates[order]] = True
    return mask.reshape(valid.shape)


def _capped(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the mask, or a random part of it where it exceeds MAX_DENSITY."""
    limit = int(MAX_DENSITY * mask.size)
    return _highest(rng.random(mask.shape), mask, limit) if np.count_nonzero(mask) > limit else mask
