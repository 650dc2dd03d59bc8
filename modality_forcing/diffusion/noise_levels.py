"""Noise levels t in [0, 1] (0 clean, 1 pure noise): the distributions they are drawn from in training, and the task mix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float, Key


@runtime_checkable
class NoiseLevels(Protocol):
    """A distribution of noise levels, drawn by inverting its CDF."""

    def quantile(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]: ...

    def cdf(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]: ...


def shift(t: Float[Array, "*s"], mu: float, sigma: float = 1.0) -> Float[Array, "*s"]:
    """Moves noise levels by mu in logit space: t' = e^mu / (e^mu + (1/t - 1)^sigma). Composing shifts adds their mu."""
    a = jnp.exp(mu)
    t = jnp.clip(t, 1e-30, 1.0)
    return jnp.where(t <= 1e-30, 0.0, a / (a + (1.0 / t - 1.0) ** sigma))


@dataclass(frozen=True)
class LogitNormal:
    """logit t ~ N(mu, sigma^2): the image's noise levels (mu = 1.1 in FLUX.2 and in the paper)."""

    mu: float = 1.1
    sigma: float = 1.0

    def __post_init__(self):
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, not {self.sigma}")

    def quantile(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Maps uniform u in (0, 1) to noise levels."""
        return jax.nn.sigmoid(self.mu + self.sigma * ndtri(u))

    def cdf(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """P(level <= t)."""
        return ndtr((jax.scipy.special.logit(t) - self.mu) / self.sigma)


@dataclass(frozen=True)
class PlateauLogitNormal:
    """A logit-normal whose density stays at its mode's height from the mode t* up to t = 1: the depth's noise levels.

    p(t) = p_ln(min(t, t*)) / Z with Z = P_ln(t*) + (1 - t*) p_ln(t*). Source: Black Forest Labs, "FLUX.2: Analyzing and
    Enhancing the Latent Space". t* is the mode of the *density*, logit t* = mu + sigma^2 (2 t* - 1), not sigmoid(mu).
    """

    mu: float = 1.1
    sigma: float = 1.0

    def __post_init__(self):
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, not {self.sigma}")

    @cached_property
    def mode(self) -> float:
        """t*, the densest root of the mode equation (there are several for sigma^2 >= 2)."""
        # Every root has |logit - mu| <= sigma^2; a scan brackets all of them, bisection then polishes each.
        residual = lambda x: (
            x - self.mu - self.sigma**2 * np.tanh(x / 2)
        )  # 2 sigmoid(x) - 1 = tanh(x / 2)
        grid = np.linspace(self.mu - self.sigma**2 - 1e-3, self.mu + self.sigma**2 + 1e-3, 20_001)
        sign = np.sign(residual(grid))
        roots = [float(x) for x in grid[sign == 0]]
        for left, right in zip(
            grid[:-1][sign[:-1] * sign[1:] < 0], grid[1:][sign[:-1] * sign[1:] < 0], strict=True
        ):
            for _ in range(80):
                middle = (left + right) / 2
                left, right = (
                    (middle, right) if residual(left) * residual(middle) > 0 else (left, middle)
                )
            roots.append(float((left + right) / 2))
        return max((1 / (1 + math.exp(-x)) for x in roots), key=self._base_density)

    def _base_density(self, t: float) -> float:
        z = (math.log(t / (1 - t)) - self.mu) / self.sigma
        return math.exp(-z * z / 2) / (self.sigma * math.sqrt(2 * math.pi) * t * (1 - t))

    @cached_property
    def density_at_mode(self) -> float:
        """p_ln(t*), the height of the plateau before normalisation."""
        return self._base_density(self.mode)

    @cached_property
    def mass_below_mode(self) -> float:
        """P_ln(t*), the logit-normal's own mass below its mode."""
        z = (math.log(self.mode / (1 - self.mode)) - self.mu) / self.sigma
        return 0.5 * math.erfc(-z / math.sqrt(2))

    @cached_property
    def normaliser(self) -> float:
        """Z = P_ln(t*) + (1 - t*) p_ln(t*)."""
        return self.mass_below_mode + (1 - self.mode) * self.density_at_mode

    def quantile(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Maps uniform u in (0, 1) to noise levels: the logit-normal's inverse below t*, a straight line above."""
        mass = u * self.normaliser
        rising = jax.nn.sigmoid(
            self.mu + self.sigma * ndtri(jnp.minimum(mass, self.mass_below_mode))
        )
        flat = self.mode + (mass - self.mass_below_mode) / self.density_at_mode
        return jnp.minimum(jnp.where(mass < self.mass_below_mode, rising, flat), 1.0)

    def cdf(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """P(level <= t), in closed form."""
        rising = (
            ndtr((jax.scipy.special.logit(jnp.minimum(t, self.mode)) - self.mu) / self.sigma)
            / self.normaliser
        )
        flat = 1.0 - (1.0 - t) * self.density_at_mode / self.normaliser
        return jnp.where(t < self.mode, rising, flat)


def draw(
    keys: Key[Array, " b"], levels: Mapping[str, NoiseLevels], given: Mapping[str, float]
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Bool[Array, " b"]]]:
    """Draws the noise levels of every example, and which modality (at most one) it gets clean as conditioning.

    Args:
      keys: one key per example.
      levels: each modality's distribution; levels are independent across modalities.
      given: the probability that a modality is given clean (the paper's p_i2d for the image, p_d2i for the depth).

    Returns:
      t {name: [b]} with t = 0 where given, and given {name: bool [b]}.
    """

    def one(key):
        keys = jax.random.split(key, len(levels) + 1)
        task = jax.random.uniform(
            keys[0]
        )  # one draw decides the task: "joint", or which modality is given
        t, clean, start = {}, {}, 0.0
        for k, (name, distribution) in zip(keys[1:], levels.items(), strict=True):
            stop = start + given[name]
            clean[name] = (start <= task) & (task < stop)
            start = stop
            u = jax.random.uniform(k, minval=1e-6, maxval=1.0 - 1e-6)
            t[name] = jnp.where(clean[name], 0.0, distribution.quantile(u))
        return t, clean

    return jax.vmap(one)(keys)
