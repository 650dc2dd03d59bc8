"""Scores of predicted depth against ground truth, per image, after the affine alignment of MoGe's evaluation."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from modality_forcing.evals.alignment import fit_affine_l1, subsample

_PIXELS_AT_ONCE = 2**20
_IMAGES_AT_ONCE = 32


class DepthScores(NamedTuple):
    """One entry per image; all NaN where fewer than two pixels of truth are known: there is nothing to score."""

    absrel: np.ndarray  # f32 [n], mean |p - g| / g as a fraction
    delta1: np.ndarray  # f32 [n], share of pixels within a factor 1.25
    scale: np.ndarray  # f32 [n], of the alignment
    shift: np.ndarray  # f32 [n], in units of the truth


def affine_metrics(pred: np.ndarray, truth: np.ndarray, valid: np.ndarray, *, strict: bool = False) -> DepthScores:
    """AbsRel and delta1 of each image after the best affine map of the prediction, over all pixels with known truth.

    pred, truth f32 [n h w], valid bool [n h w]; truth must be positive where valid, units are free. The map minimises
    sum |s p + t - g| / g over a 64 x 64 subsample and is not clamped (Wang et al. 2025, MoGe; see its evaluation code).
    As there, a negative aligned depth has a negative ratio and counts as within the factor; `strict` makes it fail.
    A prediction that is not finite at a known pixel scores infinity and 0: it must not pass for an image to skip.
    """
    count, height, width = pred.shape
    chunk = max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // (height * width)))
    parts = []
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        part = (np.asarray(pred[rows], np.float32), np.asarray(truth[rows], np.float32), np.asarray(valid[rows], bool))
        missing = chunk - len(part[0])  # one size, one compilation
        part = (np.pad(x, ((0, missing), (0, 0), (0, 0))) for x in part)
        parts.append([np.asarray(x)[: chunk - missing] for x in _scores(*part, strict=strict)])
    if not parts:
        return DepthScores(*(np.zeros(0, np.float32) for _ in DepthScores._fields))
    return DepthScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@partial(jax.jit, static_argnames="strict")
def _scores(pred: Array, truth: Array, valid: Array, *, strict: bool) -> DepthScores:
    broken = jnp.any(valid & ~jnp.isfinite(pred), axis=(1, 2))
    pred = jnp.where(valid & jnp.isfinite(pred), pred, 1)
    truth = jnp.where(valid, truth, 1)

    p, g, known = subsample(pred, truth, valid)  # [b n]
    fit = fit_affine_l1(p, g, jnp.where(known, 1 / g, 0))
    aligned = fit.scale[:, None, None] * pred + fit.shift[:, None, None]

    error = jnp.abs(aligned - truth) / (truth + 1e-6)  # the 1e-6 is the protocol's
    close = jnp.maximum(truth / aligned, aligned / truth) < 1.25
    if strict:
        close &= aligned > 0
    absrel, delta1 = _mean(error, valid), _mean(close, valid)
    absrel, delta1 = jnp.where(broken, jnp.inf, absrel), jnp.where(broken, 0.0, delta1)
    return DepthScores(*(jnp.where(fit.ok, x, jnp.nan) for x in (absrel, delta1, fit.scale, fit.shift)))  # pyright: ignore[reportArgumentType]


def _mean(values: Array, valid: Array) -> Array:
    return jnp.sum(jnp.where(valid, values, 0), axis=(1, 2)) / jnp.maximum(jnp.sum(valid, axis=(1, 2)), 1)


def mean_scores(scores: DepthScores) -> dict[str, float]:
    """The plain mean over images of absrel and delta1, with the number of `images` in it and of those `skipped`."""
    scored = ~np.isnan(scores.absrel)
    if not scored.any():
        return {"absrel": float("nan"), "delta1": float("nan"), "images": 0, "skipped": len(scored)}
    return {
        "absrel": float(np.mean(scores.absrel[scored], dtype=np.float64)),
        "delta1": float(np.mean(scores.delta1[scored], dtype=np.float64)),
        "images": int(scored.sum()),
        "skipped": int((~scored).sum()),
    }


def constant_scores(truth: np.ndarray, valid: np.ndarray, *, strict: bool = False) -> DepthScores:
    """What the best constant per image scores: the bar for a model that has seen nothing of the picture."""
    return affine_metrics(np.ones_like(truth, np.float32), truth, valid, strict=strict)


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
