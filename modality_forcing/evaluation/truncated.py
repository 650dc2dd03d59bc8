"""Truncated L1 fits, in which no sample costs more than a bound: exact, for scale, shift, and both.

The cost sum min(tau, w |s p + t - g|) is not convex, but piecewise linear: along one parameter a, each of its minima lies
where a term is 0, since the other kinks, where a term meets the bound, bend downwards. So the candidates are the n zeros,
and prefix sums over three sorted lists of kinks give the cost at all of them at once. A best line passes through a sample
(else it could be shifted until it does), so the affine fit tries each as an anchor: O(n^2 log n) where the convex fit of
alignment.py takes O(n). MoGe trains with this cost and evaluates without (Wang et al. 2025, moge/utils/alignment.py).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from modality_forcing.evaluation.alignment import Fit, cleaned

_ANCHORS_AT_ONCE = 16
_CLOSEST = 8  # candidates whose cost is added up anew: prefix sums in float32 order them no finer


def fit_scale_truncated(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"], bound: float
) -> Fit:
    """Scale minimising sum min(bound, w |s p - g|) per image; shift 0, and no gap is certified (NaN). Weight 0: unknown."""
    return jax.vmap(partial(_scale, bound=bound))(pred, truth, weight)


def fit_shift_truncated(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"], bound: float
) -> Fit:
    """Shift minimising sum min(bound, w |p + t - g|) per image; scale 1, otherwise as `fit_scale_truncated`."""
    return jax.vmap(partial(_shift, bound=bound))(pred, truth, weight)


def fit_affine_truncated(
    pred: Float[Array, "b n"], truth: Float[Array, "b n"], weight: Float[Array, "b n"], bound: float
) -> Fit:
    """Scale and shift minimising sum min(bound, w |s p + t - g|) per image; otherwise as `fit_scale_truncated`.

    A constant prediction gets scale 0 and the best shift.
    """
    # One image at a time: the sorted lists of a few anchors take enough memory.
    return lax.map(lambda image: _affine(*image, bound=bound), (pred, truth, weight))


def _scale(pred: Array, truth: Array, weight: Array, *, bound: float) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)
    scale, _ = _best(pred, truth, weight, bound)
    return _finish(pred, truth, weight, scale, jnp.float32(0), bound)


def _shift(pred: Array, truth: Array, weight: Array, *, bound: float) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)
    shift, _ = _best(jnp.ones_like(pred), truth - pred, weight, bound)
    return _finish(pred, truth, weight, jnp.float32(1), shift, bound)


def _affine(pred: Array, truth: Array, weight: Array, *, bound: float) -> Fit:
    pred, truth, weight = cleaned(pred, truth, weight)

    def through(anchor):
        p, g, w = anchor
        slope, cost = _best(pred - p, truth - g, weight, bound)
        return slope, g - slope * p, jnp.where(w > 0, cost, jnp.inf)

    slopes, shifts, costs = lax.map(through, (pred, truth, weight), batch_size=_ANCHORS_AT_ONCE)
    best = jnp.argmin(costs)
    return _finish(pred, truth, weight, slopes[best], shifts[best], bound)


def _best(x: Array, y: Array, weight: Array, bound: float) -> tuple[Array, Array]:
    """The a minimising sum min(bound, w |a x - y|) over samples [n], and that sum; a is 0 where no x counts."""
    y, x = jnp.where(x < 0, -y, y), jnp.abs(x)
    pull = weight * x
    counts = pull > 0
    zero = jnp.where(counts, y / jnp.where(counts, x, 1), jnp.inf)
    reach = jnp.where(counts, bound / jnp.where(counts, pull, 1), 0)

    def below(kinks):
        """Of the terms whose kink lies below each candidate: the sums of w x and of w y, and how many they are."""
        order = jnp.argsort(kinks)
        place = jnp.searchsorted(kinks[order], zero)
        first = jnp.zeros(1, jnp.float32)
        sums = (
            jnp.concatenate([first, jnp.cumsum(v[order])])[place]
            for v in (pull, jnp.where(counts, weight * y, 0))
        )
        return *sums, place

    (px, py, entered), (mx, my, _), (qx, qy, left) = (
        below(zero - reach),
        below(zero),
        below(zero + reach),
    )
    falling = (py - my) - zero * (px - mx)  # of terms between the bound and their zero
    rising = zero * (mx - qx) - (my - qy)
    cost = jnp.where(counts, falling + rising + bound * (jnp.sum(counts) - entered + left), jnp.inf)
    # Far out, where the sums cancel, a cost may come out below any that there is.
    cost = jnp.where(cost < -1e-3 * bound * x.size, jnp.inf, cost)
    near = lax.top_k(-cost, min(_CLOSEST, x.size))[1]
    candidates = jnp.where(counts[near], zero[near], 0)
    costs = jnp.sum(jnp.minimum(bound, weight * jnp.abs(candidates[:, None] * x - y)), axis=1)
    best = jnp.argmin(costs)
    return candidates[best], costs[best]


def _finish(
    pred: Array, truth: Array, weight: Array, scale: Array, shift: Array, bound: float
) -> Fit:
    ok = jnp.sum(weight > 0) >= 2
    scale, shift = jnp.where(ok, scale, 1), jnp.where(ok, shift, 0)
    loss = jnp.sum(jnp.minimum(bound, weight * jnp.abs(scale * pred + shift - truth)))
    return Fit(scale, shift, loss, jnp.float32(jnp.nan), ok)
