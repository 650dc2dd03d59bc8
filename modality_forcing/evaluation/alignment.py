"""Alignment of a prediction to ground truth before it is scored: exact weighted L1 (scale, shift, affine) and least squares.

The L1 affine fit minimises f(s, t) = sum w |s p + t - g|, which is convex and piecewise linear. For a given s the best
t is a weighted median, so what is left is F(s) = min_t f(s, t) in one variable. Each evaluation of F also yields a
subgradient, whose sign says on which side the optimum lies: bisection finds it, to the spacing of floats, in under
thirty medians where a scan of all samples as anchors needs one for each. Losses are not compared on the way, because
float32 sums are too coarse for that near an optimum; the signs of subgradients are not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

_HALVINGS = 26  # of a bracket 4 wide: to the spacing of float32
_TINY = float(np.finfo(np.float32).tiny)


class Fit(NamedTuple):
    """truth ~ scale * pred + shift, per image."""

    scale: Float[Array, " b"]
    shift: Float[Array, " b"]
    loss: Float[Array, " b"]  # the minimised sum, in the caller's units
    gap: Float[
        Array, " b"
    ]  # certified: the loss exceeds the optimum by at most this much, up to rounding; NaN: not
    ok: Bool[
        Array, " b"
    ]  # False where fewer than two samples were known; there scale is 1 and shift 0


def fit_affine_l1(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Fit:
    """Scale and shift minimising sum w |s p + t - g| per image, to the last digits of float32.

    The scale may be negative. Weight 0 means unknown: the values there have no influence, NaN included. A constant
    prediction gets scale 0 and the weighted median as shift. With weight 1/g this is the objective of MoGe's
    evaluation (Wang et al. 2025), which finds the same optimum by trying every sample as an anchor.
    """
    return jax.vmap(_fit_affine_l1)(pred, truth, weight)


def fit_scale_l1(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Fit:
    """Scale minimising sum w |s p - g| per image: the weighted median of g / p with weights w |p|; shift 0."""
    return jax.vmap(_fit_scale_l1)(pred, truth, weight)


def fit_shift_l1(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Fit:
    """Shift minimising sum w |p + t - g| per image: the weighted median of g - p; scale 1."""
    return jax.vmap(_fit_shift_l1)(pred, truth, weight)


def fit_affine_l2(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Fit:
    """Scale and shift minimising sum w (s p + t - g)^2 per image (with weight 1: the protocol of Marigold, 2024)."""
    return jax.vmap(_fit_affine_l2)(pred, truth, weight)


def weighted_median(values: Float[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, ""]:
    """The smallest value whose weight, with that of all smaller ones, reaches half the total.

    Weights must not all be 0. Found by bisection over the bit patterns of floats, which order as integers: 32 masked
    sums and no sort, which is several times faster than a sort on CPU and exact all the same.
    """
    keys = _ordered(values)
    half = weight.sum() / 2

    def narrow(_, bracket):
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        reached = jnp.sum(jnp.where(keys <= middle, weight, 0)) >= half
        return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

    known = weight > 0
    low = jnp.min(jnp.where(known, keys, np.iinfo(np.int32).max))
    high = jnp.max(jnp.where(known, keys, np.iinfo(np.int32).min))
    # The upper end: where rounding keeps the sum short of half, the largest value is the answer.
    return _unordered(lax.fori_loop(0, 32, narrow, (low, high))[1])


def _ordered(values: Array) -> Array:
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _unordered(keys: Array) -> Array:
    return lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys), jnp.float32)


class _End(NamedTuple):
    """F at one slope, and a subgradient there."""

    s: Array
    t: Array
    value: Array
    slope: Array


def _fit_affine_l1(pred: Array, truth: Array, weight: Array) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)
    enough = jnp.sum(weight > 0) >= 2
    # Keep the arithmetic finite where there is nothing to fit.
    share = jnp.where(enough, weight / jnp.maximum(weight.sum(), _TINY), 1.0 / weight.size)
    p, p_centre, p_spread = _normalised(pred, share)
    g, g_centre, g_spread = _normalised(truth, share)
    best, gap = _minimise(p, g, share)

    # With a constant prediction every slope is as good; 0 is the one that says so.
    scale = jnp.where(jnp.any(p != 0), best.s * g_spread / p_spread, 0)
    shift = g_centre + g_spread * best.t - scale * p_centre
    return _finish(pred, truth, weight, scale, shift, gap * g_spread * weight.sum(), enough)


def _normalised(values: Array, share: Array) -> tuple[Array, Array, Array]:
    """Values around their weighted median in units of their mean deviation from it (0 deviation: unit 1)."""
    centre = weighted_median(values, share)
    values = jnp.where(share > 0, values - centre, 0)
    spread = jnp.sum(share * jnp.abs(values))
    spread = jnp.where(spread > 0, spread, 1)
    return values / spread, centre, spread


def _minimise(p: Array, g: Array, share: Array) -> tuple[_End, Array]:
    """The lowest point of F for normalised p and g, and the certified gap."""

    def evaluate(s):
        rest = g - s * p
        t = weighted_median(rest, share)
        side = jnp.sign(t - rest)
        below_minus_above = jnp.sum(share * side)
        at = jnp.where(side == 0, share, 0)
        # The samples the line passes through share what makes the derivative in t vanish; then this is one in s.
        balance = -below_minus_above / jnp.maximum(jnp.sum(at), _TINY)
        slope = jnp.sum((share * side + balance * at) * p)
        return _End(s, t, jnp.sum(share * jnp.abs(t - rest)), slope)

    def halve(_, bracket):
        low, high = bracket
        middle = evaluate((low.s + high.s) / 2)
        rising = middle.slope >= 0
        return jax.tree.map(lambda x, y: jnp.where(rising, x, y), (low, middle), (middle, high))

    # F(0) = 1 and F(s) >= |s| - 1 in these units, so the optimum has |s| <= 2.
    ends = evaluate(jnp.float32(-2)), evaluate(jnp.float32(2))
    low, high = lax.fori_loop(0, _HALVINGS, halve, ends)
    best = jax.tree.map(lambda x, y: jnp.where(low.value < high.value, x, y), low, high)
    # The lines below F at both ends meet at a lower bound of the optimum.
    bend = jnp.maximum(high.slope - low.slope, _TINY)
    meeting = jnp.clip(
        (low.value - high.value + high.slope * (high.s - low.s)) / bend, 0, high.s - low.s
    )
    return best, jnp.maximum(best.value - low.value - low.slope * meeting, 0)


def _fit_scale_l1(pred: Array, truth: Array, weight: Array) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)
    pull = weight * jnp.abs(pred)
    some = jnp.sum(pull) > 0
    ratio = truth / jnp.where(pred == 0, 1, pred)
    scale = jnp.where(some, weighted_median(ratio, jnp.where(some, pull, 1)), 0)
    return _finish(
        pred, truth, weight, scale, jnp.float32(0), jnp.float32(0), jnp.sum(weight > 0) >= 2
    )


def _fit_shift_l1(pred: Array, truth: Array, weight: Array) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)
    some = jnp.any(
        weight > 0
    )  # one sample is enough for a shift, and too few for `ok` all the same
    shift = weighted_median(truth - pred, jnp.where(some, weight, 1))
    return _finish(
        pred, truth, weight, jnp.float32(1), shift, jnp.float32(0), jnp.sum(weight > 0) >= 2
    )


def _fit_affine_l2(pred: Array, truth: Array, weight: Array) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)
    enough = jnp.sum(weight > 0) >= 2
    share = weight / jnp.maximum(weight.sum(), _TINY)
    p_mean, g_mean = jnp.sum(share * pred), jnp.sum(share * truth)
    p, g = pred - p_mean, truth - g_mean
    constant = jnp.max(jnp.where(weight > 0, pred, -jnp.inf)) <= jnp.min(
        jnp.where(weight > 0, pred, jnp.inf)
    )
    scale = jnp.where(
        constant, 0, jnp.sum(share * p * g) / jnp.where(constant, 1, jnp.sum(share * p * p))
    )
    fit = _finish(pred, truth, weight, scale, g_mean - scale * p_mean, jnp.float32(0), enough)
    return fit._replace(loss=jnp.sum(weight * (fit.scale * pred + fit.shift - truth) ** 2))


def cleaned(pred: Array, truth: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Prediction, truth and weight with 0 in all three where the weight is not above 0."""
    known = weight > 0
    zero = jnp.zeros_like(weight, jnp.float32)
    return (
        jnp.where(known, pred, zero),
        jnp.where(known, truth, zero),
        jnp.where(known, weight, zero),
    )


def _finish(pred, truth, weight, scale, shift, gap, enough) -> Fit:
    scale, shift = jnp.where(enough, scale, 1), jnp.where(enough, shift, 0)
    loss = jnp.sum(weight * jnp.abs(scale * pred + shift - truth))
    return Fit(scale, shift, loss, jnp.where(enough, gap, 0), enough)


def subsample(
    pred: Float[Array, "b h w"],
    truth: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    cells: int = 64,
) -> tuple[Float[Array, "b n"], Float[Array, "b n"], Bool[Array, "b n"]]:
    """The known pixel nearest to the centre of each of cells x cells cells: pred, truth and whether the cell has one.

    The rule is that of MoGe's evaluation, so that the fit is on the same pixels. An image of at most `cells` a side is
    returned whole, each pixel once, where MoGe would repeat some pixels and so weigh them more.
    """
    height, width = pred.shape[1:]
    if height <= cells and width <= cells:
        return tuple(x.reshape(x.shape[0], -1) for x in (pred, truth, valid))  # pyright: ignore[reportReturnType]
    rows, row_distance = _windows(height, cells)
    cols, col_distance = _windows(width, cells)
    # [cells*cells window], window in row-major order: argmin then settles ties as the reference does.
    distance = _window_grid(row_distance, col_distance)
    source = _window_grid(rows * width, cols)

    def one(image):
        pred, truth, valid = (x.reshape(-1) for x in image)
        apart = jnp.where(valid[source], distance, jnp.inf)
        nearest = jnp.argmin(apart, axis=-1, keepdims=True)
        pixel = jnp.take_along_axis(jnp.asarray(source), nearest, axis=-1)[:, 0]
        return pred[pixel], truth[pixel], jnp.isfinite(jnp.min(apart, axis=-1))

    return lax.map(
        one, (pred, truth, valid)
    )  # one at a time: the windows of a large image take tens of megabytes


def _windows(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Per cell along one axis: the pixels that may stand for it and their squared distance from it, [cells k].

    Windows of neighbouring cells overlap, so a lone pixel may stand for several cells. In float32 throughout: windows
    begin half way between pixels, where rounding decides, and it has to decide alike here and in the reference.
    """
    f32 = np.float32
    extent = f32(max(1.0, size / cells))
    centre = (np.arange(cells, dtype=np.float32) + f32(0.5)) / f32(cells) * f32(size)
    first = np.round(centre - extent / f32(2)).astype(np.int32)  # half to even
    pixel = first[:, None] + np.arange(math.ceil(extent), dtype=np.int32)
    distance = (pixel.astype(np.float32) + f32(0.5) - centre[:, None]) ** 2
    return np.clip(pixel, 0, size - 1), np.where(
        (pixel >= 0) & (pixel < size), distance, np.inf
    ).astype(np.float32)


def _window_grid(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The sum for each pair of a row and a column in a cell's window: [c k] + [c m] -> [c*c k*m]."""
    grid = rows[:, None, :, None] + cols[None, :, None, :]
    return grid.reshape(rows.shape[0] * cols.shape[0], -1)
