"""Minimizes the summed Huber loss of log residuals, for many weightings of the same rows at once.

Every resample of a bootstrap is a weighting. A thousand fits are then one loop over arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.laws.forms import Array, Design

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2; of natural logarithms
EXPONENTS = (0.0, 5.0)  # bounds: no effect, and a power that no learning curve shows
SMALLEST = 1e-9  # of the lowest loss: a term this small in the middle of the table is absent
_TOLERANCE = 1e-11  # relative decrease that a step predicts at the minimum
_BLOCK_SIZE = 1 << 15  # problems x rows whose arrays fit in the processor's cache


@dataclass(frozen=True)
class Box:
    """The bounds of theta, [p] each."""

    low: Array
    high: Array

    @classmethod
    def of(cls, design: Design, log_loss: Array) -> Box:
        """Returns bounds from the losses: in the middle of the table no term exceeds the highest.

        All terms are positive and decreasing.
        """
        is_coefficient = design.is_coefficient
        low = np.where(is_coefficient, log_loss.min() + np.log(SMALLEST), EXPONENTS[0])
        return cls(low, np.where(is_coefficient, log_loss.max() + 1, EXPONENTS[1]))


def loss(residuals: Array, delta: float = DELTA) -> Array:
    """Returns the Huber loss of each residual: r^2/2 up to delta, then linear (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def shares(design: Design, theta: Array) -> tuple[Array, Array]:
    """Returns the log of the law [b n] and each term's share of it [b k n] at theta [b p]."""
    logs = np.stack(
        [
            theta @ slopes + absent
            for slopes, absent in zip(design.slopes, design.absent, strict=True)
        ],
        axis=1,
    )
    top = logs.max(axis=1, keepdims=True)
    parts = np.exp(logs - top)
    total = parts.sum(axis=1, keepdims=True)
    return (top + np.log(total))[:, 0], parts / total


def gradients(design: Design, share: Array) -> Array:
    """Returns d log law / d theta [b p n]: the terms' slopes, weighted by their shares."""
    result = np.zeros((len(share), *design.slopes.shape[1:]))
    for k, p in zip(*np.nonzero(design.slopes.any(axis=2)), strict=True):
        result[:, p] += share[:, k] * design.slopes[k, p]
    return result


def objective(design: Design, log_loss: Array, weights: Array, theta: Array) -> Array:
    """Returns sum_n weight · Huber(log law - log loss) [b] at theta [b p]; weights [b n] or [n]."""
    return (weights * loss(shares(design, theta)[0] - log_loss)).sum(axis=1)


def minimize(
    design: Design, log_loss: Array, weights: Array, start: Array, *, max_steps: int = 200
) -> tuple[Array, Array]:
    """Returns theta [b p] and value [b] of the minimum below each start [b p]; weights [b n].

    max_steps: descents that need more move along a valley in which the value hardly changes.

    A damped Newton method. Near the minimum only rows within delta of the law have curvature, often
    too few to determine a step. Iteratively reweighted least squares (weight delta/|residual|
    beyond delta) always determines one, and is slow. The step solves with the Hessian plus mu times
    the matrix of the reweighting; as mu decreases it becomes the Newton step where that works.
    """
    box = Box.of(design, log_loss)
    pieces = max(1, len(start) * len(log_loss) // _BLOCK_SIZE)
    done = [
        _minimize(
            design, log_loss, w, np.clip(theta, box.low, box.high), box=box, max_steps=max_steps
        )
        for w, theta in zip(
            np.array_split(weights, pieces), np.array_split(start, pieces), strict=True
        )
    ]
    return np.concatenate([theta for theta, _ in done]), np.concatenate(
        [value for _, value in done]
    )


def _minimize(
    design: Design, log_loss: Array, weights: Array, start: Array, *, box: Box, max_steps: int
):
    theta = start.copy()
    value = objective(design, log_loss, weights, theta)
    mu = np.ones(len(theta))
    active = np.arange(len(theta))  # those not yet at their minimum
    for _ in range(max_steps):
        if not len(active):
            break
        at, w = theta[active], weights[active]
        step, predicted = _step(design, log_loss, w, at, mu=mu[active], box=box)
        tried = np.clip(at + step, box.low, box.high)
        reached = objective(design, log_loss, w, tried)
        better = reached < value[active]
        theta[active] = np.where(better[:, None], tried, at)
        converged = (
            (predicted >= 0) & (predicted < _TOLERANCE * value[active] + 1e-18) & (mu[active] <= 1)
        )
        finished = converged | (mu[active] > 1e12)
        value[active] = np.where(better, reached, value[active])
        mu[active] *= np.where(better, 0.2, 6.0)
        mu[active] = np.maximum(mu[active], 1e-9)
        active = active[~finished]
    return theta, value


def _step(
    design: Design, log_loss: Array, weights: Array, theta: Array, *, mu: Array, box: Box
) -> tuple[Array, Array]:
    """The step [b p], which stays in the box, and the decrease that its model predicts [b]."""
    law, share = shares(design, theta)
    slopes, residual = gradients(design, share), law - log_loss
    size = np.abs(residual)
    weighted = weights * np.clip(residual, -DELTA, DELTA)
    downhill = -(slopes @ weighted[..., None])[..., 0]
    reweighted = weights * np.minimum(1, DELTA / np.maximum(size, DELTA))
    # The law's log has the Hessian sum_k share_k slope_k slope_k' - slope slope', with the slopes
    # of term k and of the law.
    by_law = weights * (size <= DELTA) - weighted + mu[:, None] * reweighted
    matrix = (slopes * by_law[:, None]) @ slopes.swapaxes(1, 2)
    for k, of_term in enumerate(design.slopes):
        products = (of_term[:, None] * of_term).reshape(-1, of_term.shape[1])
        matrix += ((weighted * share[:, k]) @ products.T).reshape(matrix.shape)
    at_bound = (theta <= box.low) & (downhill < 0) | (theta >= box.high) & (downhill > 0)
    downhill = np.where(at_bound, 0, downhill)
    matrix = np.where(at_bound[:, :, None] | at_bound[:, None, :], 0, matrix)
    p = np.arange(theta.shape[1])
    matrix[:, p, p] += 1e-12 * np.abs(matrix[:, p, p]).max(axis=1, keepdims=True) + np.where(
        at_bound, 1, 1e-30
    )
    step = np.linalg.solve(matrix, downhill[..., None])[..., 0]
    # The quadratic model of log terms is local.
    step /= np.maximum(1, np.abs(step).max(axis=1, keepdims=True) / 2)
    return step, (downhill * step).sum(axis=1)
