"""Maps of the network's size at a photograph's size: bilinear, or guided by the photograph.

Guided: in every window of 5 x 5 pixels the logarithm of depth is fitted by a linear function of the
photograph's colors at the network's size (the guided filter, He et al. 2013), and the functions are
enlarged instead of depth and applied to the photograph. Edges of depth are then where the
photograph has them, and not smeared over the pixels between two samples.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from modality_forcing.data.resize import Window, crop_resize_image
from modality_forcing.evaluation.resample import resize_prediction

RADIUS = 2  # of the window; this and the next by benchmarks/photo_fits.py
EPSILON = 0.01  # variance of colors in [0, 1] below which a window is flat
_LEAST = 2.0  # enlargement for which colors are worth it
_STRIP = 2**16  # pixels: their sums stay in the cache of a core
_TINY = 1e-30


def enlarge_depth(
    depth: np.ndarray,
    guide: np.ndarray,
    *,
    small: np.ndarray | None = None,
    radius: int = RADIUS,
    epsilon: float = EPSILON,
) -> np.ndarray:
    """Returns depth f32 [r c], positive, at the size of a guide u8 [h w 3] of the same view.

    Bilinear if a side grows less than twofold: colors have no more detail to add then.

    small: the guide u8 [r c 3] by `crop_resize_image`, where it is known already.
    """
    size = guide.shape[0], guide.shape[1]
    if min(size[0] / depth.shape[0], size[1] / depth.shape[1]) < _LEAST:
        return resize_prediction(depth, size)
    if small is None:
        small = crop_resize_image(guide, Window(0, 0, *size), (depth.shape[0], depth.shape[1]))
    slopes, offset = _fit_colors(depth, small, radius, epsilon)
    planes = [resize_prediction(x, size) for x in (*np.moveaxis(slopes, -1, 0), offset)]
    # Between the least and the largest: a color that no window has seen extrapolates.
    low, high = (np.log(np.maximum(x, _TINY)) for x in (depth.min(), depth.max()))
    rows, made = max(1, _STRIP // size[1]), np.empty(size, np.float32)
    for start in range(0, size[0], rows):
        strip = slice(start, start + rows)
        log = made[strip]
        log[...] = 0
        for channel in range(3):
            term = guide[strip, :, channel].astype(np.float32)
            term /= np.float32(255)
            term *= planes[channel][strip]
            log += term
        log += planes[3][strip]
        np.exp(np.clip(log, low, high, out=log), out=log)
    return made


def _fit_colors(
    depth: np.ndarray, small: np.ndarray, radius: int, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log depth ~ slopes [r c 3] . colors + offset [r c], the mean of windows' fits."""
    colors = small / 255.0
    log = np.log(np.maximum(depth.astype(np.float64), _TINY))

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, 2 * radius + 1, mode="nearest", axes=(0, 1))

    color, level = mean(colors), mean(log)
    products = mean(colors[..., :, None] * colors[..., None, :])
    covariance = products - color[..., :, None] * color[..., None, :] + epsilon * np.eye(3)
    cross = mean(colors * log[..., None]) - color * level[..., None]
    slopes = np.linalg.solve(covariance, cross[..., None])[..., 0]
    return mean(slopes), mean(level - np.sum(slopes * color, axis=-1))
