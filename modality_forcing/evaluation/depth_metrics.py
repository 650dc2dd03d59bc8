"""Scores of predicted depth against ground truth: per image under a protocol, then the mean of a set, then over sets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modality_forcing.evaluation.alignment import (
    Fit,
    fit_affine_l1,
    fit_affine_l2,
    fit_scale_l1,
    subsample,
)
from modality_forcing.evaluation.crops import within
from modality_forcing.evaluation.protocols import MOGE, Protocol

_PIXELS_AT_ONCE = 2**20
_IMAGES_AT_ONCE = 32
FLOOR = (
    1e-6  # least depth of a clipped prediction (Marigold's), and of one whose logarithm is taken
)


class DepthScores(NamedTuple):
    """One entry per image, f32 [n]; all NaN where there is nothing to score: fewer than two known pixels to fit, or none."""

    absrel: np.ndarray  # mean |p - g| / g, as a fraction (tables print it times 100)
    delta1: np.ndarray  # share of pixels within a factor 1.25
    delta2: np.ndarray  # ... 1.25^2
    delta3: np.ndarray  # ... 1.25^3
    rmse: np.ndarray  # root of the mean squared error, in the unit of the truth
    log10: np.ndarray  # mean |log10 p - log10 g|
    silog: np.ndarray  # standard deviation of ln p - ln g (KITTI prints it times 100)
    scale: np.ndarray  # of the alignment; in disparity where that is aligned
    shift: np.ndarray
    constant: np.ndarray  # 1 where the prediction was constant over what it was fitted to: any scale would have done, 0 was taken


METRICS = ("absrel", "delta1", "delta2", "delta3", "rmse", "log10", "silog")


def score(
    pred: np.ndarray, truth: np.ndarray, valid: np.ndarray, protocol: Protocol = MOGE
) -> DepthScores:
    """Scores each image over all its pixels of known truth, after the protocol's alignment.

    pred, truth f32 [n h w] (pred: disparity where the protocol aligns that), valid bool [n h w]; truth must be positive
    where valid. Images are spread over the local devices; no score depends on how, nor on the other images.
    A prediction that is not finite at a known pixel scores infinity and 0: it must not pass for an image to skip.
    """
    count, height, width = pred.shape
    devices = len(jax.local_devices())
    chunk = max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // (height * width)))
    chunk = -(-min(chunk, max(count, 1)) // devices) * devices
    run, place = _compiled(protocol)
    parts = []
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        part = (
            np.asarray(pred[rows], np.float32),
            np.asarray(truth[rows], np.float32),
            np.asarray(valid[rows], bool),
        )
        missing = chunk - len(part[0])  # one size, one compilation
        part = (jax.device_put(np.pad(x, ((0, missing), (0, 0), (0, 0))), place) for x in part)
        parts.append([np.asarray(x)[: chunk - missing] for x in run(*part)])
    if not parts:
        return DepthScores(*(np.zeros(0, np.float32) for _ in DepthScores._fields))
    return DepthScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@cache
def _compiled(protocol: Protocol):
    """The scores of a protocol over the local devices, each with its own images, and where to put the images."""
    mesh = Mesh(np.array(jax.local_devices()), ("image",))
    spec = PartitionSpec("image")
    each = jax.shard_map(
        partial(_scores, protocol=protocol),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    return jax.jit(each), NamedSharding(mesh, spec)


def _scores(pred: Array, truth: Array, valid: Array, *, protocol: Protocol) -> DepthScores:
    valid = _within(truth, valid, protocol)
    broken = jnp.any(valid & ~jnp.isfinite(pred), axis=(1, 2))
    pred = jnp.where(valid & jnp.isfinite(pred), pred, 1)
    truth = jnp.where(valid, truth, 1)
    fit, constant = _fit(pred, truth, valid, protocol)
    laid = _lay(pred, truth, valid, fit, protocol)

    error = jnp.abs(laid - truth)
    ratio = jnp.maximum(truth / laid, laid / truth)
    if protocol.strict:
        ratio = jnp.where(laid > 0, ratio, jnp.inf)
    logs = jnp.log(jnp.maximum(laid, FLOOR)) - jnp.log(
        truth
    )  # a depth that is not positive has no logarithm of its own
    bias = _mean(logs, valid)
    bound = 1e-6 if protocol.name == "moge" else 0.0  # as there: it matters in the seventh digit
    scores = [
        _mean(error / (truth + bound), valid),
        *(_mean(ratio < 1.25**k, valid) for k in (1, 2, 3)),
        jnp.sqrt(_mean(error**2, valid)),
        _mean(jnp.abs(logs), valid) / jnp.log(10.0),
        jnp.sqrt(_mean((logs - bias[:, None, None]) ** 2, valid)),
    ]
    worst = (jnp.inf, 0.0, 0.0, 0.0, jnp.inf, jnp.inf, jnp.inf)
    scores = [jnp.where(broken, bad, x) for x, bad in zip(scores, worst, strict=True)]
    scores += [fit.scale, fit.shift, constant.astype(jnp.float32)]
    return DepthScores(*(jnp.where(fit.ok, x, jnp.nan) for x in scores))  # pyright: ignore[reportArgumentType]


def aligned(
    pred: np.ndarray, truth: np.ndarray, valid: np.ndarray, protocol: Protocol = MOGE
) -> np.ndarray:
    """Returns predictions as depth f32 [n h w] in the unit of the truth, all pixels of them, as `score` compares them."""

    def lay(pred, truth, valid):
        valid = _within(truth, valid, protocol)
        known = jnp.where(valid & jnp.isfinite(pred), pred, 1), jnp.where(valid, truth, 1), valid
        return _lay(pred, *known[1:], _fit(*known, protocol)[0], protocol)

    return np.asarray(
        jax.jit(lay)(jnp.asarray(pred, jnp.float32), jnp.asarray(truth, jnp.float32), valid)
    )


def _within(truth: Array, valid: Array, protocol: Protocol) -> Array:
    if protocol.depth_range is None or not protocol.masks_truth:
        return valid
    return within(truth, valid, *protocol.depth_range)


def _fit(pred: Array, truth: Array, valid: Array, protocol: Protocol) -> tuple[Fit, Array]:
    """What brings each prediction over its truth, and whether it was fitted to a constant."""
    count = pred.shape[0]
    if protocol.align == "none":
        one, zero = jnp.ones(count, jnp.float32), jnp.zeros(count, jnp.float32)
        return Fit(one, zero, zero, zero, jnp.any(valid, axis=(1, 2))), jnp.zeros(count, bool)

    disparity = protocol.align == "disparity"
    if protocol.name == "moge" and not disparity:
        p, g, known = subsample(pred, truth, valid)  # [b n]
        solve = fit_affine_l1 if protocol.align == "affine" else fit_scale_l1
        fit = solve(p, g, jnp.where(known, 1 / g, 0))
    else:
        p, g, known = (
            _picked(x, protocol.fit_side).reshape(count, -1) for x in (pred, truth, valid)
        )
        if protocol.name == "marigold" and disparity:
            known = known & (p > 0)
        fit = fit_affine_l2(p, 1 / g if disparity else g, known.astype(jnp.float32))
    return fit, _spread(p, known) == 0 if protocol.align != "scale" else fit.scale == 0


def _lay(pred: Array, truth: Array, valid: Array, fit: Fit, protocol: Protocol) -> Array:
    """The prediction as depth [n h w], fitted and clipped."""
    laid = (
        pred
        if protocol.align == "none"
        else fit.scale[:, None, None] * pred + fit.shift[:, None, None]
    )
    if protocol.align == "disparity":
        # Disparity below that of the farthest truth (MoGe), or below Marigold's constant, has no depth worth the name.
        farthest = jnp.max(jnp.where(valid, truth, 0), axis=(1, 2), keepdims=True)
        laid = 1 / jnp.maximum(
            laid, 1 / jnp.maximum(farthest, FLOOR) if protocol.name == "moge" else 1e-3
        )
    if protocol.clips:
        least, most = protocol.depth_range or (0.0, jnp.inf)
        laid = jnp.clip(laid, max(least, FLOOR), most)
    return laid


def _picked(maps: Array, side: int | None) -> Array:
    """Maps [n h w] at a longer side of at most `side`, each pixel one of theirs: torch's "nearest", as in Marigold's fit."""
    height, width = maps.shape[1:]
    if side is None or max(height, width) <= side:
        return maps
    part = side / max(height, width)
    rows, columns = (
        np.floor(np.arange(int(n * part)) * np.float32(1 / part)).astype(int)
        for n in (height, width)
    )
    return maps[:, rows[:, None], columns]


def _spread(values: Array, known: Array) -> Array:
    return jnp.max(jnp.where(known, values, -jnp.inf), axis=-1) - jnp.min(
        jnp.where(known, values, jnp.inf), axis=-1
    )


def _mean(values: Array, valid: Array) -> Array:
    return jnp.sum(jnp.where(valid, values, 0), axis=(1, 2)) / jnp.maximum(
        jnp.sum(valid, axis=(1, 2)), 1
    )


def concatenate(parts: list[DepthScores]) -> DepthScores:
    """The scores of several batches as those of one."""
    return DepthScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def mean_scores(scores: DepthScores) -> dict[str, float]:
    """The plain mean of each metric over the images, with the number of `images` in it and of those `skipped`."""
    scored = ~np.isnan(scores.absrel)
    means = {
        m: float(np.mean(getattr(scores, m)[scored], dtype=np.float64))
        if scored.any()
        else float("nan")
        for m in METRICS
    }
    return means | {"images": int(scored.sum()), "skipped": int((~scored).sum())}


def mean_over_sets(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The plain mean of each metric over sets, each counting once whatever its size; sets with nothing scored are left out."""
    scored = [numbers for numbers in sets.values() if numbers["images"]]
    means = {
        m: float(np.mean([numbers[m] for numbers in scored])) if scored else float("nan")
        for m in METRICS
    }
    return means | {
        "sets": len(scored),
        "images": sum(int(numbers["images"]) for numbers in scored),
    }


def constant_scores(truth: np.ndarray, valid: np.ndarray, protocol: Protocol = MOGE) -> DepthScores:
    """What the best constant per image scores: the bar for a model that has seen nothing of the picture."""
    return score(np.ones_like(truth, np.float32), truth, valid, protocol)


def row_mean_prediction(train_depth: np.ndarray, train_valid: np.ndarray) -> np.ndarray:
    """The depth of each image row over training scenes, each scene divided by its own mean: a prediction f32 [h w].

    train_depth f32 [n h w], train_valid bool [n h w]. It knows that the ground is below and near, and nothing of the
    picture. A row never seen valid takes the value of the nearest row that was. Raises ValueError if nothing is valid.
    """
    known = np.where(train_valid, train_depth, 0).astype(np.float64)
    per_scene = train_valid.sum(axis=(1, 2))
    scene_mean = known.sum(axis=(1, 2)) / np.maximum(per_scene, 1)
    relative = known / np.where(per_scene > 0, scene_mean, 1)[:, None, None]
    per_row = train_valid.sum(axis=(0, 2))
    seen = np.flatnonzero(per_row)
    if not len(seen):
        raise ValueError("no training depth is valid, so no row has a mean")
    row_mean = relative.sum(axis=(0, 2))[seen] / per_row[seen]
    rows = np.arange(train_depth.shape[1])
    nearest = np.abs(rows[:, None] - seen).argmin(axis=1)
    return np.repeat(row_mean[nearest, None], train_depth.shape[2], axis=1).astype(np.float32)
