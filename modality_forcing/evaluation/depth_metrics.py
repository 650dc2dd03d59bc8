"""Depth metrics: per image under a protocol, then the mean of a set, then the mean over sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modality_forcing import distributed
from modality_forcing.evaluation.alignment import (
    Alignment,
    align_affine_l1,
    align_affine_l2,
    align_scale_l1,
)
from modality_forcing.evaluation.protocols import MOGE, Protocol
from modality_forcing.evaluation.resample import subsample, thin_columns
from modality_forcing.tree import JsonObject

_PIXELS_PER_CHUNK = 2**20
_IMAGES_PER_CHUNK = 32
# Least depth of a clipped prediction (Marigold's), and of one whose logarithm is taken.
MIN_DEPTH = 1e-6
_NAMED = 5  # images listed in a message


class DepthScores(NamedTuple):
    """One entry per image, f32 [n]. All are NaN for an image without enough valid pixels.

    That is fewer than two valid pixels to align on, or none to score.
    """

    absrel: np.ndarray  # mean |p - g| / g, as a fraction (tables print it times 100)
    delta1: np.ndarray  # share of pixels within a factor of 1.25
    delta2: np.ndarray  # ... 1.25^2
    delta3: np.ndarray  # ... 1.25^3
    rmse: np.ndarray  # root mean squared error, in the unit of the target
    log10: np.ndarray  # mean |log10 p - log10 g|
    silog: np.ndarray  # standard deviation of ln p - ln g (KITTI prints it times 100)
    scale: np.ndarray  # of the alignment; of disparity where that is aligned
    shift: np.ndarray
    constant_pred: np.ndarray  # 1 where the prediction was constant, so that scale 0 was taken
    nonfinite: np.ndarray  # number of valid pixels whose prediction is NaN or infinite


METRICS = ("absrel", "delta1", "delta2", "delta3", "rmse", "log10", "silog")


def score(
    pred: np.ndarray, target: np.ndarray, valid: np.ndarray, protocol: Protocol = MOGE
) -> DepthScores:
    """Scores each image over all its valid pixels, after the protocol's alignment.

    Args:
      pred: f32 [n h w]; disparity where the protocol aligns that.
      target: f32 [n h w], positive where valid.
      valid: bool [n h w].

    Images are distributed over the local devices; no score depends on how, nor on other images.
    A prediction that is not finite at a valid pixel scores infinity and 0: it must not pass for an
    image to skip. The public tools leave no such pixel out either: Marigold's stops there, MoGe's
    gives the image an AbsRel of infinity or NaN, and leaves NaN out of the mean.
    """
    count, height, width = pred.shape
    devices = len(distributed.local_devices())
    chunk = max(1, min(_IMAGES_PER_CHUNK, _PIXELS_PER_CHUNK // (height * width)))
    chunk = -(-min(chunk, max(count, 1)) // devices) * devices
    compiled, sharding = _compile(protocol)
    parts = []
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        n = len(pred[rows])
        padding = ((0, chunk - n), (0, 0), (0, 0))  # one shape, one compilation
        arrays = (
            np.asarray(pred[rows], np.float32),
            np.asarray(target[rows], np.float32),
            np.asarray(valid[rows], bool),
        )
        sharded = [jax.device_put(np.pad(x, padding), sharding) for x in arrays]
        parts.append(DepthScores(*(np.asarray(x)[:n] for x in compiled(*sharded))))
    return concatenate(parts)


@cache
def _compile(protocol: Protocol):
    """Returns the jitted scores of a protocol over the local devices, and the image sharding."""
    mesh = Mesh(np.array(distributed.local_devices()), ("image",))
    spec = PartitionSpec("image")
    scores = partial(_scores, protocol=protocol)
    mapped = jax.shard_map(scores, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped), NamedSharding(mesh, spec)


def _scores(pred: Array, target: Array, valid: Array, *, protocol: Protocol) -> DepthScores:
    valid = _mask_range(target, valid, protocol)
    nonfinite = jnp.sum(valid & ~jnp.isfinite(pred), axis=(1, 2))
    pred = jnp.where(valid & jnp.isfinite(pred), pred, 1)
    target = jnp.where(valid, target, 1)
    alignment, constant = _align(pred, target, valid, protocol)
    depth = _apply_alignment(alignment, pred, protocol, _farthest(target, valid))

    error = jnp.abs(depth - target)
    ratio = jnp.maximum(target / depth, depth / target)
    if protocol.strict:
        ratio = jnp.where(depth > 0, ratio, jnp.inf)
    # A depth that is not positive has no logarithm of its own.
    logs = jnp.log(jnp.maximum(depth, MIN_DEPTH)) - jnp.log(target)
    bias = _mean(logs, valid)
    epsilon = 1e-6 if protocol.name == "moge" else 0.0  # as in MoGe: matters in the seventh digit
    scores = [
        _mean(error / (target + epsilon), valid),
        *(_mean(ratio < 1.25**k, valid) for k in (1, 2, 3)),
        jnp.sqrt(_mean(error**2, valid)),
        _mean(jnp.abs(logs), valid) / jnp.log(10.0),
        jnp.sqrt(_mean((logs - bias[:, None, None]) ** 2, valid)),
    ]
    worst = (jnp.inf, 0.0, 0.0, 0.0, jnp.inf, jnp.inf, jnp.inf)
    scores = [jnp.where(nonfinite > 0, bad, x) for x, bad in zip(scores, worst, strict=True)]
    scores += [alignment.scale, alignment.shift]
    scores += [x.astype(jnp.float32) for x in (constant, nonfinite)]
    return DepthScores(*(jnp.where(alignment.ok, x, jnp.nan) for x in scores))  # pyright: ignore[reportArgumentType]


def align_prediction(
    pred: np.ndarray, target: np.ndarray, valid: np.ndarray, protocol: Protocol = MOGE
) -> np.ndarray:
    """Returns all pixels of predictions as depth f32 [n h w] in the unit of the target."""

    @jax.jit
    def align(pred, target, valid):
        valid = _mask_range(target, valid, protocol)
        clean = jnp.where(valid & jnp.isfinite(pred), pred, 1)
        target = jnp.where(valid, target, 1)
        alignment, _ = _align(clean, target, valid, protocol)
        return _apply_alignment(alignment, pred, protocol, _farthest(target, valid))

    pred, target = np.asarray(pred, np.float32), np.asarray(target, np.float32)
    return np.asarray(align(pred, target, valid))


def _mask_range(target: Array, valid: Array, protocol: Protocol) -> Array:
    if protocol.depth_range is None or not protocol.masks_target:
        return valid
    low, high = protocol.depth_range
    return valid & (target > low) & (target < high)  # ends excluded, as in Marigold and BTS


def _align(pred: Array, target: Array, valid: Array, protocol: Protocol) -> tuple[Alignment, Array]:
    """Returns the alignment, and whether the prediction was constant where it was aligned."""
    count = pred.shape[0]
    if protocol.align == "none":
        one, zero = jnp.ones(count, jnp.float32), jnp.zeros(count, jnp.float32)
        ok = jnp.any(valid, axis=(1, 2))
        return Alignment(one, zero, zero, zero, zero, ok), jnp.zeros(count, bool)

    disparity = protocol.align == "disparity"
    if protocol.name == "moge" and not disparity:
        p, g, used = subsample(pred, target, valid)  # [b n]
        solve = align_affine_l1 if protocol.align == "affine" else align_scale_l1
        alignment = solve(p, g, jnp.where(used, 1 / g, 0))
    else:
        p, g, used = (
            thin_columns(x, protocol.align_max_side).reshape(count, -1)
            for x in (pred, target, valid)
        )
        if protocol.name == "marigold" and disparity:
            used = used & (p > 0)
        alignment = align_affine_l2(p, 1 / g if disparity else g, used.astype(jnp.float32))
    if protocol.align == "scale":
        return alignment, alignment.scale == 0
    high = jnp.max(jnp.where(used, p, -jnp.inf), axis=-1)
    return alignment, high - jnp.min(jnp.where(used, p, jnp.inf), axis=-1) == 0


def _farthest(target: Array, valid: Array) -> Array:
    """Returns the greatest valid depth of each image, [n 1 1]."""
    return jnp.max(jnp.where(valid, target, 0), axis=(1, 2), keepdims=True)


def _apply_alignment(
    alignment: Alignment, pred: Array, protocol: Protocol, farthest: Array
) -> Array:
    """Returns the prediction as depth [n h w], aligned and clipped."""
    depth = alignment.apply(pred.reshape(len(pred), -1)).reshape(pred.shape)
    if protocol.align == "disparity":
        # Disparity below that of the farthest target (MoGe) or below a constant (Marigold) is
        # clipped: it has no meaningful depth.
        least = 1 / jnp.maximum(farthest, MIN_DEPTH) if protocol.name == "moge" else 1e-3
        depth = 1 / jnp.maximum(depth, least)
    if protocol.clips:
        low, high = protocol.depth_range or (0.0, jnp.inf)
        depth = jnp.clip(depth, max(low, MIN_DEPTH), high)
    return depth


def _mean(values: Array, valid: Array) -> Array:
    total = jnp.sum(jnp.where(valid, values, 0), axis=(1, 2))
    return total / jnp.maximum(jnp.sum(valid, axis=(1, 2)), 1)


def concatenate(parts: Sequence[DepthScores]) -> DepthScores:
    """Returns the scores of several batches as those of one."""
    if not parts:
        return DepthScores(*(np.zeros(0, np.float32) for _ in DepthScores._fields))
    return DepthScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def mean_scores(scores: DepthScores) -> dict[str, float]:
    """Returns the mean of each metric over images, and how many `images` counted or `skipped`.

    `nonfinite` is how many of those that counted have a prediction that is not finite.
    """
    scored = ~np.isnan(scores.absrel)
    means = {name: _mean_or_nan(getattr(scores, name)[scored]) for name in METRICS}
    counts = {"images": scored, "skipped": ~scored, "nonfinite": scores.nonfinite > 0}
    return means | {name: int(images.sum()) for name, images in counts.items()}


def relative_means(scores: DepthScores) -> dict[str, float]:
    """Returns those means that relative depth has; errors in a unit would be meaningless."""
    means = mean_scores(scores)
    return {name: means[name] for name in ("absrel", "delta1", "images", "skipped")}


def describe_counts(result: JsonObject) -> str:
    """Returns how many images of a result were scored, and which predictions are not finite.

    result: counts of `mean_scores`, and `rows` with `nonfinite` and a `name` or an `index`.
    """
    text = f"{result['images']} images scored, {result['skipped']} with nothing to score"
    if not result["nonfinite"]:
        return text
    rows = [row for row in result["rows"] if row["nonfinite"]]
    named = [
        f"{row.get('name', row['index'])} ({row['nonfinite']:.0f} of {row['valid_pixels']} pixels)"
        for row in rows[:_NAMED]
    ]
    named += [f"{len(rows) - _NAMED} more"] if len(rows) > _NAMED else []
    return (
        f"{text}, {len(rows)} with a prediction that is not finite at valid pixels and counts as"
        f" AbsRel infinity and delta 0: {', '.join(named)}"
    )


def mean_over_sets(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each metric over sets, each weighted alike; empty sets are left out."""
    scored = [numbers for numbers in sets.values() if numbers["images"]]
    means = {name: _mean_or_nan([numbers[name] for numbers in scored]) for name in METRICS}
    images = sum(int(numbers["images"]) for numbers in scored)
    return means | {"sets": len(scored), "images": images}


def _mean_or_nan(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")


def constant_scores(
    target: np.ndarray, valid: np.ndarray, protocol: Protocol = MOGE
) -> DepthScores:
    """Returns the scores of the best constant per image: the baseline that ignores the image."""
    return score(np.ones_like(target, np.float32), target, valid, protocol)


def row_mean_prediction(train_depth: np.ndarray, train_valid: np.ndarray) -> np.ndarray:
    """Returns the mean relative depth f32 [h w] of each image row over training scenes.

    Each scene is divided by its own mean. The baseline captures that the ground is near and low,
    and ignores the image. A row without valid pixels takes the nearest row's value. Raises
    ValueError if no pixel is valid.

    Args:
      train_depth: f32 [n h w].
      train_valid: bool [n h w].
    """
    depth = np.where(train_valid, train_depth, 0).astype(np.float64)
    per_scene = train_valid.sum(axis=(1, 2))
    scene_mean = depth.sum(axis=(1, 2)) / np.maximum(per_scene, 1)
    relative = depth / np.where(per_scene > 0, scene_mean, 1)[:, None, None]
    per_row = train_valid.sum(axis=(0, 2))
    seen = np.flatnonzero(per_row)
    if not len(seen):
        raise ValueError("no training depth is valid, so no row has a mean")
    row_mean = relative.sum(axis=(0, 2))[seen] / per_row[seen]
    rows = np.arange(train_depth.shape[1])
    nearest = np.abs(rows[:, None] - seen).argmin(axis=1)
    return np.repeat(row_mean[nearest, None], train_depth.shape[2], axis=1).astype(np.float32)
