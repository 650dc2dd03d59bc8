"""Errors of surface normals: angles, pooled over the pixels of a set as the field reports them."""

from __future__ import annotations

import numpy as np

THRESHOLDS = (11.25, 22.5, 30.0)  # degrees (Eigen and Fergus 2015, and all after them)
WORST = 180.0  # degrees
_KNOWN = 0.5  # least length of a known normal; unknown ones are 0


def angular_error(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the angle between normals, f32 [n h w] in degrees.

    Args:
      pred: f32 [n h w 3] of any length.
      target: f32 [n h w 3].

    NaN where either is unknown (0). A prediction that is not finite is `WORST`: it must not pass
    for a pixel to skip.
    """
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    finite = np.all(np.isfinite(pred), axis=-1, keepdims=True)
    pred, finite = np.where(finite, pred, 0.0), finite[..., 0]
    # The arc tangent is exact for small angles, where the arc cosine loses half of the digits.
    cross = np.linalg.norm(np.cross(pred, target), axis=-1)
    angle = np.degrees(np.arctan2(cross, np.einsum("...i,...i->...", pred, target)))
    angle = np.where(finite, angle, WORST)
    valid = np.linalg.norm(target, axis=-1) > _KNOWN
    valid &= ~finite | (np.linalg.norm(pred, axis=-1) > 0)
    return np.where(valid, angle, np.nan).astype(np.float32)


def summarize(errors: np.ndarray) -> dict[str, float]:
    """Returns statistics of `angular_error` over all known pixels of a set.

    `mean_deg` and `median_deg` in degrees; `within_11.25` and so on: share of pixels with at most
    so many degrees; `images` with a known pixel, `skipped` without.
    """
    valid = ~np.isnan(errors)
    angles = errors[valid].astype(np.float64)
    any_valid = valid.any(axis=(1, 2))
    counts = {"images": int(any_valid.sum()), "skipped": int((~any_valid).sum())}
    if not len(angles):
        names = ("mean_deg", "median_deg", *(f"within_{x:g}" for x in THRESHOLDS))
        return dict.fromkeys(names, float("nan")) | counts
    statistics = {"mean_deg": float(angles.mean()), "median_deg": float(np.median(angles))}
    within = {f"within_{x:g}": float((angles <= x).mean()) for x in THRESHOLDS}
    return {**statistics, **within, **counts}


def constant_prediction(target: np.ndarray) -> np.ndarray:
    """Returns the mean direction of each image's own normals [n h w 3], in every pixel of it.

    The baseline that uses how a scene is turned to the camera, and none of its parts.
    """
    mean = target.sum(axis=(1, 2), keepdims=True, dtype=np.float64)
    return np.broadcast_to(mean, target.shape).astype(np.float32)


def row_mean_prediction(train: np.ndarray) -> np.ndarray:
    """Returns the mean direction f32 [h w 3] in each image row of training normals [n h w 3].

    The baseline that uses where floors and ceilings are, and ignores the image.
    """
    mean = train.sum(axis=(0, 2), dtype=np.float64)  # [h 3]
    return np.repeat(mean[:, None], train.shape[2], axis=1).astype(np.float32)
