"""Alignment of predictions to ground truth: exact weighted L1 (scale or affine) and least squares.

The affine L1 alignment minimizes f(s, t) = sum w |s p + t - g|, which is convex and piecewise
linear. For a given s the best t is a weighted median, so F(s) = min_t f(s, t) has one variable.
Each evaluation of F also yields a subgradient, whose sign gives the side of the optimum. Bisection
finds the optimum to the spacing of floats in under thirty medians; trying every sample as an anchor
would need one median per sample. Losses are not compared on the way, because float32 sums are too
coarse for that near an optimum; the signs of subgradients are not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

_BISECTIONS = 26  # of a bracket of width 4: down to the spacing of float32
_TINY = float(np.finfo(np.float32).tiny)


class Alignment(NamedTuple):
    """target ~ scale * (pred - center) + offset, per image.

    With scale * pred + shift instead, float32 would lose a prediction that varies by little around
    a value far from 0: both terms are large and cancel.
    """

    scale: Float[Array, "*b"]
    center: Float[Array, "*b"]  # the median or the mean of pred, or 0
    offset: Float[Array, "*b"]
    loss: Float[Array, "*b"]  # the minimized sum, in the caller's units
    # Certified bound on how far the loss exceeds the optimum, up to rounding.
    optimality_gap: Float[Array, "*b"]
    ok: Bool[Array, "*b"]  # False with fewer than two samples; then scale is 1 and shift 0

    @property
    def shift(self) -> Float[Array, "*b"]:
        """The shift of target ~ scale * pred + shift."""
        return self.offset - self.scale * self.center

    def apply(self, pred: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        """Returns the aligned prediction."""
        scale, center, offset = (x[..., None] for x in (self.scale, self.center, self.offset))
        return scale * (pred - center) + offset


def align_affine_l1(
    pred: Float[Array, "b n"], target: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Alignment:
    """Returns scale and shift minimizing sum w |s p + t - g| per image, exact to float32.

    The scale may be negative. Samples of weight 0 have no influence, NaN included. A constant
    prediction gets scale 0 and the weighted median as shift. With weight 1/g this is the objective
    of MoGe's evaluation (Wang et al. 2025), which tries every sample as an anchor instead.
    """
    return jax.vmap(_align_affine_l1)(pred, target, weight)


def align_scale_l1(
    pred: Float[Array, "b n"], target: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Alignment:
    """Returns the scale minimizing sum w |s p - g| per image: a weighted median of g / p."""
    return jax.vmap(_align_scale_l1)(pred, target, weight)


def align_affine_l2(
    pred: Float[Array, "b n"], target: Float[Array, "b n"], weight: Float[Array, "b n"]
) -> Alignment:
    """Returns scale and shift minimizing sum w (s p + t - g)^2 per image (Marigold: weight 1)."""
    return jax.vmap(_align_affine_l2)(pred, target, weight)


def weighted_median(values: Float[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, ""]:
    """Returns the least value at which the cumulative weight reaches half the total.

    At least one weight must be positive. The search bisects the bit patterns of floats, which
    order as integers: 32 masked sums and no sort, which is several times faster on CPU and exact.
    """
    keys = _to_ordered_int(values)
    half = weight.sum() / 2

    def narrow(_, bracket):
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        reached = jnp.sum(jnp.where(keys <= middle, weight, 0)) >= half
        return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

    used = weight > 0
    low = jnp.min(jnp.where(used, keys, np.iinfo(np.int32).max))
    high = jnp.max(jnp.where(used, keys, np.iinfo(np.int32).min))
    # The upper end: where rounding keeps the sum short of half, the largest value is the answer.
    return _from_ordered_int(lax.fori_loop(0, 32, narrow, (low, high))[1])


def _to_ordered_int(values: Array) -> Array:
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _from_ordered_int(keys: Array) -> Array:
    return lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys), jnp.float32)


class _Point(NamedTuple):
    """F at one scale s, with the best shift t and a subgradient."""

    s: Array
    t: Array
    value: Array
    slope: Array


def _align_affine_l1(pred: Array, target: Array, weight: Array) -> Alignment:
    pred, target, weight = _zero_unweighted(pred, target, weight)
    enough = jnp.sum(weight > 0) >= 2
    # Keep the arithmetic finite where there is nothing to align.
    share = jnp.where(enough, weight / jnp.maximum(weight.sum(), _TINY), 1.0 / weight.size)
    p, p_center, p_spread = _normalize(pred, share)
    g, g_center, g_spread = _normalize(target, share)
    best, gap = _minimize(p, g, share)

    # With a constant prediction every scale gives the same loss; 0 is the canonical choice.
    scale = jnp.where(jnp.any(p != 0), best.s * g_spread / p_spread, 0)
    offset = g_center + g_spread * best.t
    alignment = _finish(pred, target, weight, (scale, p_center, offset))
    gap = gap * g_spread * weight.sum()
    return alignment._replace(optimality_gap=jnp.where(enough, gap, 0))


def _normalize(values: Array, share: Array) -> tuple[Array, Array, Array]:
    """Returns values minus their weighted median over their mean deviation (1 if that is 0)."""
    center = weighted_median(values, share)
    values = jnp.where(share > 0, values - center, 0)
    spread = jnp.sum(share * jnp.abs(values))
    spread = jnp.where(spread > 0, spread, 1)
    return values / spread, center, spread


def _minimize(p: Array, g: Array, share: Array) -> tuple[_Point, Array]:
    """Returns the minimum of F for normalized p and g, and its certified optimality gap."""

    def evaluate(s):
        rest = g - s * p
        t = weighted_median(rest, share)
        side = jnp.sign(t - rest)
        below_minus_above = jnp.sum(share * side)
        at = jnp.where(side == 0, share, 0)
        # Distribute over the samples on the line what makes the derivative in t vanish; the
        # result is then a derivative in s.
        balance = -below_minus_above / jnp.maximum(jnp.sum(at), _TINY)
        slope = jnp.sum((share * side + balance * at) * p)
        return _Point(s, t, jnp.sum(share * jnp.abs(t - rest)), slope)

    def bisect(_, bracket):
        low, high = bracket
        middle = evaluate((low.s + high.s) / 2)
        rising = middle.slope >= 0
        return jax.tree.map(lambda x, y: jnp.where(rising, x, y), (low, middle), (middle, high))

    # F(0) = 1 and F(s) >= |s| - 1 in these units, so the optimum has |s| <= 2.
    ends = evaluate(jnp.float32(-2)), evaluate(jnp.float32(2))
    low, high = lax.fori_loop(0, _BISECTIONS, bisect, ends)
    best = jax.tree.map(lambda x, y: jnp.where(low.value < high.value, x, y), low, high)
    # The tangents of F at both ends meet at a lower bound of the optimum.
    width, bend = high.s - low.s, jnp.maximum(high.slope - low.slope, _TINY)
    meeting = jnp.clip((low.value - high.value + high.slope * width) / bend, 0, width)
    return best, jnp.maximum(best.value - low.value - low.slope * meeting, 0)


def _align_scale_l1(pred: Array, target: Array, weight: Array) -> Alignment:
    pred, target, weight = _zero_unweighted(pred, target, weight)
    pull = weight * jnp.abs(pred)
    some = jnp.sum(pull) > 0
    ratio = target / jnp.where(pred == 0, 1, pred)
    scale = jnp.where(some, weighted_median(ratio, jnp.where(some, pull, 1)), 0)
    zero = jnp.float32(0)
    return _finish(pred, target, weight, (scale, zero, zero))


def _align_affine_l2(pred: Array, target: Array, weight: Array) -> Alignment:
    pred, target, weight = _zero_unweighted(pred, target, weight)
    share = weight / jnp.maximum(weight.sum(), _TINY)
    # Float32 cannot hold the mean of values that differ by little, and a sum of many of them is
    # off by more than they differ. So their mean is taken again after a rounded one is subtracted.
    center, g_center = jnp.sum(share * pred), jnp.sum(share * target)
    p, g = pred - center, target - g_center
    p_mean, g_mean = jnp.sum(share * p), jnp.sum(share * g)
    p, g = p - p_mean, g - g_mean
    highest = jnp.max(jnp.where(weight > 0, pred, -jnp.inf))
    constant = highest <= jnp.min(jnp.where(weight > 0, pred, jnp.inf))
    slope = jnp.sum(share * p * g) / jnp.where(constant, 1, jnp.sum(share * p * p))
    scale = jnp.where(constant, 0, slope)
    offset = g_center + (g_mean - scale * p_mean)
    result = _finish(pred, target, weight, (scale, center, offset))
    return result._replace(loss=jnp.sum(weight * (result.apply(pred) - target) ** 2))


def _zero_unweighted(pred: Array, target: Array, weight: Array) -> tuple[Array, Array, Array]:
    used, zero = weight > 0, jnp.float32(0)
    return jnp.where(used, pred, zero), jnp.where(used, target, zero), jnp.where(used, weight, zero)


def _finish(
    pred: Array, target: Array, weight: Array, line: tuple[Array, Array, Array]
) -> Alignment:
    """Returns the alignment of a scale, center and offset, or the identity, with its L1 loss."""
    enough, zero = jnp.sum(weight > 0) >= 2, jnp.float32(0)
    scale, center, offset = (
        jnp.where(enough, x, identity) for x, identity in zip(line, (1, 0, 0), strict=True)
    )
    result = Alignment(scale, center, offset, loss=zero, optimality_gap=zero, ok=enough)
    return result._replace(loss=jnp.sum(weight * jnp.abs(result.apply(pred) - target)))
