"""Several samples of one picture's depth to one map and its uncertainty, after Marigold (Ke et al., CVPR 2024).

Each member d_i may be scaled and shifted, a_i = s_i d_i + t_i. Marigold minimises

    J = sum_{i<j} sqrt(mean_pixels (a_i - a_j)^2) + 0.02 (|min M| + |1 - max M|),  M the pixelwise median or mean of a,

and normalises M to [0, 1]. The pairwise sum is proportional to a common scale, so J has its minimum where M spans [0, 1]
only while that sum is below 0.02; above it, as for any real ensemble, the minimum is J = 0.02 at constant maps, which hold
no depth. Rounding keeps Marigold from there: parameters are float32, and a difference of 2^-26, SciPy's, does not change
a scale of 0.5 or more. So from its start, each member's own normalisation, the scale alone does not move at all while maps
stay below 2 (given in a unit 100 times smaller, they do collapse), and scale and shift move a little, to where the order
in which pixels are added decides. tests/parity/test_marigold_ensemble.py has the numbers.

What the second term is there for, a common scale and shift, the last normalisation does anyway. So here the pairwise sum
alone is minimised, with the mean of the members' standard deviations kept. That is convex, takes no pixels but the
members' correlations, has equal means as its shifts, and no need of a line search.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

_ROUNDS = 200  # of the reweighting; samples of one picture take about five, unrelated maps twenty, maps turned round more
_STILL = 1e-9  # change of the deviations, whose mean is 1, at which it ends
_COINCIDE = 1e-7  # distance below which two members count as this far apart: 1/distance stays finite; float32 is no finer
_CONSTANT = 1e-30  # range up to which a member counts as constant: one over it must be a float32


class Ensemble(NamedTuple):
    """One map per ensemble; with a batch, every field has it in front."""

    depth: np.ndarray  # f32 [h w]; affine: 0 to 1; scale: at most 1, zero stays zero; 0 everywhere if no member is usable
    uncertainty: (
        np.ndarray
    )  # f32 [h w], in the unit of depth: median |member - depth|, or the standard deviation
    scale: (
        np.ndarray
    )  # f64 [e]: scale * member + shift is the member in the unit of depth; 0 for one left out
    shift: np.ndarray  # f64 [e]
    loss: (
        np.ndarray
    )  # f64 []: the sum over pairs of root mean squared differences, in the unit of depth
    used: np.ndarray  # bool [e]: False for a member left out: not finite, constant (affine) or nowhere positive (scale)


def ensemble(
    maps: ArrayLike,
    mode: Literal["affine", "scale"] = "affine",
    reduction: Literal["median", "mean"] = "median",
    align: bool = True,
    max_side: int = 1024,
) -> Ensemble:
    """The consensus of e depth maps [e h w], or of each of a batch [b e h w].

    mode: what is unknown of a member, scale and shift or the scale alone. The median of an even number is the lower
    middle one, as torch has it; of two members that is the lesser, and their median uncertainty is 0. The affine result is
    normalised by its least and greatest value, the other by its greatest. The scale of a member, if positive, and its
    shift change nothing; a member against the trend of the others may get a negative scale.

    align=False leaves members at their own normalisation, by least and greatest value or by the greatest: what Marigold
    starts from and, for the scale alone of maps below 2, returns. Maps with a side above max_side are aligned on their
    nearest-exact subsample of that side.

    Raises ValueError for another mode, reduction or shape.
    """
    members = np.asarray(maps, np.float32)
    if mode not in ("affine", "scale") or reduction not in ("median", "mean"):
        raise ValueError(
            f"mode {mode!r} is affine or scale, reduction {reduction!r} is median or mean"
        )
    if members.ndim not in (3, 4) or 0 in members.shape[-3:]:
        raise ValueError(f"an ensemble has shape [e h w] or [b e h w], this one {members.shape}")
    if members.ndim == 3:
        return _one(members, mode, reduction, align, max_side)
    # One at a time: ten maps in double precision are large enough, and the solve is a small part of the time.
    results = [_one(x, mode, reduction, align, max_side) for x in members]
    if not results:
        b, e, h, w = members.shape
        shapes = ((b, h, w), (b, h, w), (b, e), (b, e), (b,), (b, e))
        return Ensemble(
            *(
                np.zeros(s, t)
                for s, t in zip(shapes, ("f4", "f4", "f8", "f8", "f8", "?"), strict=True)
            )
        )
    return Ensemble(*(np.stack(column) for column in zip(*results, strict=True)))


def _one(members: np.ndarray, mode: str, reduction: str, align: bool, max_side: int) -> Ensemble:
    affine = mode == "affine"
    finite = np.isfinite(members).all(axis=(1, 2))
    flat = _subsampled(members, max_side).reshape(len(members), -1)
    # Range 0 where a pixel is not finite, as if constant: such a member is left out too.
    low, high = (
        np.where(finite, x, 0).astype(np.float64) for x in (flat.min(axis=1), flat.max(axis=1))
    )
    extent = high - low if affine else high
    used = extent > _CONSTANT
    scale, shift = np.zeros((2, len(members)))
    if not used.any():
        nothing = np.zeros(members.shape[1:], np.float32)
        return Ensemble(nothing, nothing.copy(), scale, shift, np.zeros(()), used)
    mean, deviation, cosine = moments(flat[used], centred=affine)
    if align:
        deviations, offsets = balance(cosine), np.zeros(len(mean))
    else:
        deviations = deviation / extent[used]
        offsets = (mean - low[used]) / extent[used] if affine else np.zeros(len(mean))
    factor = deviations / deviation
    # Around the mean: of a member far from 0 in its own unit, float32 would lose digits in scale * member + shift.
    around = mean.astype(np.float32)
    placed = (x.astype(np.float32) for x in (factor, offsets + factor * (around - mean)))
    depth, uncertainty = (
        np.asarray(x) for x in _reduce(members[used], around, *placed, median=reduction == "median")
    )
    # Not in the jitted part: it may compute depth twice with two roundings, and the greatest would be 1.0000001.
    start = depth.min() if affine else np.float32(0)
    span = depth.max() - start
    span = span if span > 0 else np.float32(1)
    scale[used] = factor / float(span)
    shift[used] = (offsets - factor * mean - float(start)) / float(span)
    loss = np.asarray(pair_sum(deviations, cosine, offsets)[0] / float(span))
    return Ensemble((depth - start) / span, uncertainty / span, scale, shift, loss, used)


def _subsampled(members: np.ndarray, max_side: int) -> np.ndarray:
    """Members [e h w] by nearest-exact (the pixel under each centre) to at most max_side rows and columns."""
    size = members.shape[1:]
    if max(size) <= max_side:
        return members
    rows, cols = (_centres(n, max(1, int(n * max_side / max(size)))) for n in size)
    return members[:, rows[:, None], cols]


def _centres(size: int, count: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) * size / count).astype(int)


def moments(members: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [e], deviation [e] and correlation [e e] of members [e n] in double precision: all an alignment needs of them.

    They are the Gram matrix of the members and 1. Not centred: mean 0, root mean square, and cosine.
    """
    values = members.astype(np.float64)
    mean = values.mean(axis=1) if centred else np.zeros(len(values))
    values -= mean[:, None]
    gram = values @ values.T / values.shape[1]
    deviation = np.sqrt(np.diag(gram))
    return mean, deviation, gram / np.outer(deviation, deviation)


def pair_sum(
    deviations: np.ndarray, cosine: np.ndarray, offsets: np.ndarray | float = 0.0
) -> tuple[float, np.ndarray]:
    """The sum over pairs of root mean squared differences, and its gradient in the deviations [e].

    Members have these deviations, these correlations [e e] and offsets as their means. Two that coincide add nothing to
    the gradient, which is then a subgradient.
    """
    apart = _distances(deviations, cosine, offsets)
    i, j = np.triu_indices(len(deviations), 1)
    return float(apart[i, j].sum()), _weighted(apart, cosine) @ deviations


def _distances(
    deviations: np.ndarray, cosine: np.ndarray, offsets: np.ndarray | float = 0.0
) -> np.ndarray:
    offsets = np.broadcast_to(offsets, deviations.shape)
    # Not u^2 + v^2 - 2uvc: members are near each other, and all that is lost of the difference is the rounding of 1 - c.
    squares = np.subtract.outer(deviations, deviations) ** 2 + 2 * (1 - cosine) * np.outer(
        deviations, deviations
    )
    squares = np.maximum(squares + np.subtract.outer(offsets, offsets) ** 2, 0)
    np.fill_diagonal(squares, 0)
    return np.sqrt(squares)


def _weighted(apart: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """The matrix whose quadratic form in the deviations is the sum over pairs of squared distance / distance held fixed."""
    weight = 1 / np.maximum(apart, _COINCIDE)
    np.fill_diagonal(weight, 0)
    return np.diag(weight.sum(axis=1)) - weight * cosine


def balance(cosine: np.ndarray) -> np.ndarray:
    """The deviations [e] of mean 1 with the least sum over pairs, given the correlations [e e].

    A sum of norms is convex. Weiszfeld's method: a quadratic above it that touches it here, minimised in closed form, again
    and again; the sum never rises. Negative deviations are members turned round.
    """
    count = len(cosine)
    deviations, ones = np.ones(count), np.ones(count)
    for _ in range(_ROUNDS):
        quadratic = _weighted(_distances(deviations, cosine), cosine)
        # The mean is kept, so a penalty on it moves nothing, and copies of one map leave a matrix to invert.
        quadratic += 1 + np.trace(quadratic) / count
        # Not solve: of a map and its negative any two deviations are as good, and the least are taken.
        step = np.linalg.lstsq(quadratic, ones, rcond=None)[0]
        step *= count / step.sum()
        change = np.abs(step - deviations).max()
        deviations = step
        if change < _STILL:
            break
    return deviations


@partial(jax.jit, static_argnames="median")
def _reduce(
    members: Array, around: Array, scale: Array, offset: Array, *, median: bool
) -> tuple[Array, Array]:
    """Middle and spread [h w] of members [e h w] so placed."""
    around, scale, offset = (x[:, None, None] for x in (around, scale, offset))
    aligned = scale * (members - around) + offset
    if median:
        depth = _lower_median(aligned)
        return depth, _lower_median(jnp.abs(aligned - depth))
    depth = jnp.mean(aligned, axis=0)
    # Of a sample, as torch has it; 0 for one member.
    return depth, jnp.sqrt(jnp.sum((aligned - depth) ** 2, axis=0) / max(len(members) - 1, 1))


def _lower_median(values: Array) -> Array:
    """The lower middle [h w] of values [e h w]."""
    rows = list(values)
    # Neighbours in turn: for a dozen members many times faster than a sort along an axis.
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            rows[i], rows[i + 1] = (
                jnp.minimum(rows[i], rows[i + 1]),
                jnp.maximum(rows[i], rows[i + 1]),
            )
    return rows[(len(rows) - 1) // 2]
