"""Sparse depth as real sensors leave it: patterns that thin a dense record to what training may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError

Pattern = Callable[[Record, np.random.Generator], np.ndarray]

MOST = 0.35  # no thinned map keeps more of its pixels than this
_FALLBACK_FOV = 60.0  # degrees, where a record has no intrinsics
_FLAT = 2.0  # grey levels per pixel, of 255: a gradient that no feature detector would take
_TINY = 1e-6


def uniform(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Pixels at random, 1% to 13% of the picture, bool [h w]."""
    wanted = round(rng.uniform(0.01, 0.13) * record.valid.size)
    return _best(rng.random(record.valid.shape), record.valid, wanted)


def lidar(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Scan lines of a spinning sensor, bool [h w]: rings of equal elevation below a level, with returns dropped.

    The rings follow the intrinsics (or a field of view of 60 degrees), tilted a little; the upper third stays empty.
    """
    height, width = record.valid.shape
    focal_x, focal_y, centre_x, centre_y = _pinhole(record)
    x = (np.arange(width) - centre_x) / focal_x
    y = (np.arange(height)[:, None] - centre_y) / focal_y
    lean = np.radians(rng.uniform(-3, 3))
    x, y = np.cos(lean) * x + np.sin(lean) * y, np.cos(lean) * y - np.sin(lean) * x
    below = np.arctan2(y, np.hypot(x, 1))
    top = np.arctan2((rng.uniform(0.35, 0.55) * height - centre_y) / focal_y, 1)
    pixel = 1 / focal_y
    bottom = np.arctan2((height - 1 - centre_y) / focal_y, 1)
    spacing = max(2.2 * pixel, (bottom - top) / rng.integers(6, 17))
    ring = (below - top) / spacing
    mask = (ring > -0.5) & (np.abs(ring - np.round(ring)) * spacing < 0.5 * pixel)
    mask &= rng.random(mask.shape) > rng.uniform(0.1, 0.5)
    # Whole sectors go missing where the sensor is blocked or the surface swallows the pulse.
    start, extent = rng.integers(width), int(rng.uniform(0, 0.2) * width)
    mask[:, start : start + extent] = False
    mask[: height // 3 + 1] = False
    return _capped(mask & record.valid, rng)


def sfm(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Points as structure from motion finds them, bool [h w]: on image gradients, in clusters, at most 0.5% to 6%.

    Strong gradients are preferred; a surface without texture gets no point.
    """
    height, width = record.valid.shape
    grey = record.image.astype(np.float32).mean(axis=2)
    down, across = np.gradient(grey)
    strength = np.hypot(down, across)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    favour = np.full((height, width), 0.05, np.float32)
    for _ in range(int(rng.integers(2, 6))):
        at, reach = (
            rng.uniform(0, 1, 2) * (height, width),
            rng.uniform(0.08, 0.3) * max(height, width),
        )
        favour += np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * reach**2))
    wanted = round(rng.uniform(0.005, 0.06) * record.valid.size)
    # The largest of log weight + Gumbel noise are a draw without replacement in proportion to the weights.
    score = np.log(strength**1.5 * favour + _TINY) - np.log(
        -np.log(rng.uniform(1e-12, 1, strength.shape))
    )
    return _best(score, record.valid & (strength > _FLAT), wanted)


def sensor(record: Record, rng: np.random.Generator) -> np.ndarray:
    """What a structured-light or time-of-flight camera sees, bool [h w]: a dense part of the picture, with its holes.

    Its field of view is narrower than the colour camera's. Nothing at a depth edge (nor, at times, beside it, where the
    projector casts no light), nothing beyond a maximum range, little on very dark surfaces.
    """
    known, shape = record.valid, record.valid.shape
    side = np.sqrt(rng.uniform(0.25, 0.5))
    height, width = (max(1, round(side * n)) for n in shape)
    top, left = (
        int(rng.integers(0, n - m + 1)) for n, m in zip(shape, (height, width), strict=True)
    )
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    hole = depth_edges(record.depth, known)
    # The projector stands beside the camera, so the strip next to an edge is in its shadow, always on the same side.
    to, away = (
        (np.s_[:, 1:], np.s_[:, :-1]) if rng.random() < 0.5 else (np.s_[:, :-1], np.s_[:, 1:])
    )
    if rng.random() < 0.5:
        hole[to] |= hole[away].copy()
    if known.any():
        mask &= record.depth <= np.quantile(record.depth[known], rng.uniform(0.7, 1.0))
    dark = record.image.max(axis=2) < 40
    mask &= ~(dark & (rng.random(shape) < 0.7))
    return _capped(mask & known & ~hole, rng)


def missing(record: Record, rng: np.random.Generator) -> np.ndarray:
    """Nothing at all, bool [h w]."""
    return np.zeros(record.valid.shape, bool)


PATTERNS: dict[str, Pattern] = {
    "uniform": uniform,
    "lidar": lidar,
    "sfm": sfm,
    "sensor": sensor,
    "missing": missing,
}
"""Each takes a record and a generator to bool [h w], a subset of record.valid, at most `MOST` of all pixels."""

DEFAULT_MIXTURE: Mapping[str, float] = {
    "uniform": 0.5,
    "lidar": 0.07,
    "sfm": 0.15,
    "sensor": 0.2,
    "missing": 0.08,
}
"""On the procedural scenes this keeps less than a tenth of the pixels on average."""


def thin(
    record: Record, rng: np.random.Generator, weights: Mapping[str, float] = DEFAULT_MIXTURE
) -> Record:
    """Thins a record by one pattern drawn by weight; depth becomes 0 where it is no longer known.

    Raises UserError for an unknown pattern, a negative weight, or weights that add up to nothing.
    """
    names = tuple(weights)
    for name in names:
        if name not in PATTERNS:
            raise UserError(
                f"unknown sparse pattern {name!r}", hint=f"known are {', '.join(PATTERNS)}"
            )
    shares = np.array([weights[name] for name in names], np.float64)
    if not len(shares) or not np.all(np.isfinite(shares)) or shares.min() < 0 or shares.sum() <= 0:
        raise UserError(
            f"sparse pattern weights {dict(weights)}", hint="need numbers >= 0 that are not all 0"
        )
    pattern = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    mask = PATTERNS[pattern](record, rng)
    return replace(record, valid=mask, depth=np.where(mask, record.depth, np.float32(0)))


def depth_edges(depth: np.ndarray, known: np.ndarray, ratio: float = 1.1) -> np.ndarray:
    """Pixels bool [h w] beside which (in the row or column) depth jumps by more than a ratio, or is unknown."""
    log = np.log(np.where(known & (depth > 0), depth, np.float32(1)))
    edges = np.zeros(depth.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        jump = np.abs(log[one] - log[other]) > np.log(ratio)
        jump |= known[one] != known[other]
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


def _best(score: np.ndarray, known: np.ndarray, wanted: int) -> np.ndarray:
    """The `wanted` known pixels of highest score (all of them if there are fewer; at least one is wanted)."""
    candidates = np.flatnonzero(known)
    wanted = min(max(wanted, 1), len(candidates))
    mask = np.zeros(known.size, bool)
    if wanted:
        order = np.argpartition(-score.ravel()[candidates], wanted - 1)[:wanted]
        mask[candidates[order]] = True
    return mask.reshape(known.shape)


def _capped(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    most = int(MOST * mask.size)
    return _best(rng.random(mask.shape), mask, most) if np.count_nonzero(mask) > most else mask
