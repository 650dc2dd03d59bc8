"""Ensembling of depth samples into one map and its uncertainty, after Marigold (Ke et al. 2024).

Each member d_i may be scaled and shifted, a_i = s_i d_i + t_i. Marigold minimizes

    J = sum_{i<j} sqrt(mean_pixels (a_i - a_j)^2) + 0.02 (|min M| + |1 - max M|),

with M the pixelwise median of a, and normalizes M to [0, 1]. The pairwise sum is
proportional to a common scale, so the minimum of J has M spanning [0, 1] only while that sum is
below 0.02. Above it, as for any real ensemble, the minimum is J = 0.02 at constant maps, which hold
no depth. Rounding keeps Marigold from there: parameters are float32, and SciPy's difference of
2^-26 does not change a scale of 0.5 or more. From its start, each member's own normalization, the
scale alone does not move at all while maps stay below 2 (in a unit 100 times smaller, they do
collapse). Scale and shift move a little, to where the order of summation decides.
tests/parity/test_marigold_ensemble.py has the numbers.

The second term only fixes a common scale and shift, which the last normalization does anyway. So
the pairwise sum alone is minimized here, at a fixed mean of the members' standard deviations. That
is convex, needs only the members' correlations, has equal means as its shifts, and no line search.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Mode = Literal["affine", "scale"]

# Reweighting steps: samples of one image take about five, unrelated maps twenty.
_MAX_ITERATIONS = 200
_CONVERGED = 1e-9  # change of the deviations, whose mean is 1
_MIN_DISTANCE = 1e-7  # keeps 1 / distance finite; float32 is no finer
_MIN_RANGE = 1e-30  # range of a constant member: its inverse must be a float32


class Ensemble(NamedTuple):
    """One map per ensemble; with a batch, every field has a leading axis."""

    # f32 [h w]. affine: 0 to 1. scale: at most 1, zero stays zero. 0 if no member is used.
    depth: np.ndarray
    # f32 [h w], in the unit of depth: median |member - depth|.
    uncertainty: np.ndarray
    # f64 [e]: scale * member + shift is the member in the unit of depth; 0 if not used.
    scale: np.ndarray
    shift: np.ndarray  # f64 [e]
    loss: np.ndarray  # f64 []: the pairwise sum of root mean squared differences
    # bool [e]: False if not finite, constant (affine) or nowhere positive (scale).
    used: np.ndarray


def ensemble(
    maps: ArrayLike, mode: Mode = "affine", *, align: bool = True, max_side: int = 1024
) -> Ensemble:
    """Returns the consensus of e depth maps [e h w], or of each of a batch [b e h w].

    The median of an even number is the lower middle one, as in torch; of two members that is the
    lesser, and their median uncertainty is 0. A positive scale and a shift of a member change
    nothing; a member against the trend of the others may get a negative scale.

    Args:
      maps: depth [e h w] or [b e h w].
      mode: what is unknown of a member: scale and shift, or the scale alone. The affine result is
        normalized by its minimum and maximum, the other by its maximum.
      align: False keeps each member's own normalization: Marigold's start, and its result for the
        scale alone of maps below 2.
      max_side: members with a longer side are aligned on a nearest-exact subsample of that side.

    Raises ValueError for another mode or shape.
    """
    members = np.asarray(maps, np.float32)
    if mode not in ("affine", "scale"):
        raise ValueError(f"mode {mode!r} is not affine or scale")
    if members.ndim not in (3, 4) or 0 in members.shape[-3:]:
        raise ValueError(f"an ensemble has shape [e h w] or [b e h w], not {members.shape}")
    merge = partial(_ensemble, affine=mode == "affine", align=align, max_side=max_side)
    if members.ndim == 3:
        return merge(members)
    if not len(members):
        b, e, h, w = members.shape
        maps, params = np.zeros((b, h, w), np.float32), np.zeros((b, e))
        return Ensemble(maps, maps.copy(), params, params.copy(), np.zeros(b), params.astype(bool))
    # One at a time: ten maps in double precision are large, and the solve takes little of the time.
    results = [merge(x) for x in members]
    return Ensemble(*(np.stack(column) for column in zip(*results, strict=True)))


def _ensemble(members: np.ndarray, *, affine: bool, align: bool, max_side: int) -> Ensemble:
    finite = np.isfinite(members).all(axis=(1, 2))
    flat = _subsample(members, max_side).reshape(len(members), -1)
    # Range 0 where a pixel is not finite, as if constant: such a member is left out too.
    low, high = (
        np.where(finite, x, 0).astype(np.float64) for x in (flat.min(axis=1), flat.max(axis=1))
    )
    extent = high - low if affine else high
    used = extent > _MIN_RANGE
    scale, shift = np.zeros((2, len(members)))
    if not used.any():
        nothing = np.zeros(members.shape[1:], np.float32)
        return Ensemble(nothing, nothing.copy(), scale, shift, np.zeros(()), used)
    mean, deviation, cosine = moments(flat[used], centered=affine)
    if align:
        deviations, offsets = minimize_pair_sum(cosine), np.zeros(len(mean))
    else:
        deviations = deviation / extent[used]
        offsets = (mean - low[used]) / extent[used] if affine else np.zeros(len(mean))
    factor = deviations / deviation
    # Around the mean: far from 0 in a member's own unit, float32 would lose digits.
    center = mean.astype(np.float32)
    shifted = (offsets + factor * (center - mean)).astype(np.float32)
    reduced = _reduce(members[used], center, factor.astype(np.float32), shifted)
    depth, uncertainty = (np.asarray(x) for x in reduced)
    # Not in the jitted part: it may compute depth twice with two roundings, and the maximum would
    # be 1.0000001.
    start = depth.min() if affine else np.float32(0)
    span = depth.max() - start
    span = span if span > 0 else np.float32(1)
    scale[used] = factor / float(span)
    shift[used] = (offsets - factor * mean - float(start)) / float(span)
    loss = np.asarray(pair_sum(deviations, cosine, offsets)[0] / float(span))
    return Ensemble((depth - start) / span, uncertainty / span, scale, shift, loss, used)


def _subsample(members: np.ndarray, max_side: int) -> np.ndarray:
    """Returns members [e h w] with at most max_side rows and columns, by nearest-exact."""
    size = members.shape[1:]
    if max(size) <= max_side:
        return members
    counts = [max(1, int(n * max_side / max(size))) for n in size]
    rows, columns = (
        ((np.arange(count) + 0.5) * n / count).astype(int)
        for n, count in zip(size, counts, strict=True)
    )
    return members[:, rows[:, None], columns]


def moments(members: np.ndarray, *, centered: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean [e], deviation [e] and correlation [e e] of members [e n], in float64.

    Not centered: mean 0, root mean square and cosine. An alignment depends on nothing else.
    """
    values = members.astype(np.float64)
    mean = values.mean(axis=1) if centered else np.zeros(len(values))
    values -= mean[:, None]
    gram = values @ values.T / values.shape[1]
    deviation = np.sqrt(np.diag(gram))
    return mean, deviation, gram / np.outer(deviation, deviation)


def pair_sum(
    deviations: np.ndarray, cosine: np.ndarray, offsets: np.ndarray | float = 0.0
) -> tuple[float, np.ndarray]:
    """Returns the pairwise sum of root mean squared differences and its gradient [e].

    The gradient is in the deviations [e]; `cosine` [e e] are the correlations and `offsets` the
    means. Two equal members add nothing to the gradient, which is then a subgradient.
    """
    distance = _distances(deviations, cosine, offsets)
    i, j = np.triu_indices(len(deviations), 1)
    return float(distance[i, j].sum()), _quadratic_form(distance, cosine) @ deviations


def _distances(
    deviations: np.ndarray, cosine: np.ndarray, offsets: np.ndarray | float = 0.0
) -> np.ndarray:
    offsets = np.broadcast_to(offsets, deviations.shape)
    # Not u^2 + v^2 - 2uvc: members are close, and this form loses only the rounding of 1 - c.
    squares = np.subtract.outer(deviations, deviations) ** 2
    squares = squares + 2 * (1 - cosine) * np.outer(deviations, deviations)
    squares = np.maximum(squares + np.subtract.outer(offsets, offsets) ** 2, 0)
    np.fill_diagonal(squares, 0)
    return np.sqrt(squares)


def _quadratic_form(distance: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Returns the quadratic form of the pairwise sum of squared distance / fixed distance."""
    weight = 1 / np.maximum(distance, _MIN_DISTANCE)
    np.fill_diagonal(weight, 0)
    return np.diag(weight.sum(axis=1)) - weight * cosine


def minimize_pair_sum(cosine: np.ndarray) -> np.ndarray:
    """Returns the deviations [e] of mean 1 with the least pairwise sum, given correlations [e e].

    Weiszfeld's method on a sum of norms, which is convex: minimize a quadratic upper bound that is
    tight at the current point, and repeat; the sum never rises. Negative deviations are members of
    opposite sign.
    """
    count = len(cosine)
    deviations, ones = np.ones(count), np.ones(count)
    for _ in range(_MAX_ITERATIONS):
        quadratic = _quadratic_form(_distances(deviations, cosine), cosine)
        # The mean is fixed, so a penalty on it moves nothing and makes copies of one map regular.
        quadratic += 1 + np.trace(quadratic) / count
        # Not solve: for a map and its negative many deviations are optimal; take the least ones.
        step = np.linalg.lstsq(quadratic, ones, rcond=None)[0]
        step *= count / step.sum()
        change = np.abs(step - deviations).max()
        deviations = step
        if change < _CONVERGED:
            break
    return deviations


@jax.jit
def _reduce(members: Array, center: Array, scale: Array, offset: Array) -> tuple[Array, Array]:
    """Returns consensus and uncertainty [h w] of scale * (members [e h w] - center) + offset."""
    center, scale, offset = (x[:, None, None] for x in (center, scale, offset))
    aligned = scale * (members - center) + offset
    depth = _lower_median(aligned)
    return depth, _lower_median(jnp.abs(aligned - depth))


def _lower_median(values: Array) -> Array:
    """Returns the lower median [h w] of values [e h w]."""
    rows = list(values)
    # Odd-even transposition: for a dozen members many times faster than a sort along an axis.
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            pair = rows[i], rows[i + 1]
            rows[i], rows[i + 1] = jnp.minimum(*pair), jnp.maximum(*pair)
    return rows[(len(rows) - 1) // 2]
