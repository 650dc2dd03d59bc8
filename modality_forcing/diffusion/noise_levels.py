"""Noise levels t in [0, 1]: their training distributions, the timestep shift and the task mix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit, ndtr, ndtri
from jaxtyping import Array, Bool, Float, Key


@runtime_checkable
class NoiseDistribution(Protocol):
    """A distribution of noise levels, sampled by inverting its CDF."""

    def icdf(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]: ...

    def cdf(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]: ...


def timestep_shift(t: Float[Array, "*s"], mu: float) -> Float[Array, "*s"]:
    """Shifts levels by mu in logit space: t' = e^mu / (e^mu + 1/t - 1).

    The mu of successive shifts add up.
    """
    a = jnp.exp(mu)
    t = jnp.clip(t, 1e-30, 1.0)
    return jnp.where(t <= 1e-30, 0.0, a / (a + (1.0 / t - 1.0)))


@dataclass(frozen=True)
class LogitNormal:
    """logit t ~ N(mu, sigma^2): the image's noise levels (mu = 1.1 in FLUX.2 and in the paper)."""

    mu: float = 1.1
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, not {self.sigma}")

    def icdf(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Maps uniform u in (0, 1) to noise levels."""
        return jax.nn.sigmoid(self.mu + self.sigma * ndtri(u))

    def cdf(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns the probability of levels up to t."""
        return ndtr((logit(t) - self.mu) / self.sigma)


@dataclass(frozen=True)
class PlateauLogitNormal(LogitNormal):
    """A logit-normal whose density is constant from its mode t* to t = 1: the depth's levels.

    p(t) = p_ln(min(t, t*)) / Z with Z = P_ln(t*) + (1 - t*) p_ln(t*). t* is the mode of the
    *density*, logit t* = mu + sigma^2 (2 t* - 1), not sigmoid(mu). Source: Black Forest Labs,
    "FLUX.2: Analyzing and Enhancing the Latent Space".
    """

    @cached_property
    def mode(self) -> float:
        """t*, the densest root of the mode equation (there are several for sigma^2 >= 2)."""

        def residual(x: np.ndarray | float) -> np.ndarray | float:
            return x - self.mu - self.sigma**2 * np.tanh(x / 2)  # 2 sigmoid(x) - 1 = tanh(x / 2)

        # |logit t* - mu| <= sigma^2 for every root: a grid brackets all, bisection refines each.
        low, high = self.mu - self.sigma**2 - 1e-3, self.mu + self.sigma**2 + 1e-3
        x = np.linspace(low, high, 20_001)
        sign = np.sign(residual(x))
        roots = [float(root) for root in x[sign == 0]]
        for i in np.flatnonzero(sign[:-1] * sign[1:] < 0):
            left, right = x[i], x[i + 1]
            for _ in range(80):
                middle = (left + right) / 2
                if residual(left) * residual(middle) > 0:
                    left = middle
                else:
                    right = middle
            roots.append(float((left + right) / 2))
        return max((1 / (1 + math.exp(-x)) for x in roots), key=self._base_density)

    def _base_density(self, t: float) -> float:
        z = (math.log(t / (1 - t)) - self.mu) / self.sigma
        return math.exp(-z * z / 2) / (self.sigma * math.sqrt(2 * math.pi) * t * (1 - t))

    @cached_property
    def density_at_mode(self) -> float:
        """p_ln(t*), the height of the plateau before normalization."""
        return self._base_density(self.mode)

    @cached_property
    def mass_below_mode(self) -> float:
        """P_ln(t*), the logit-normal's own mass below its mode."""
        z = (math.log(self.mode / (1 - self.mode)) - self.mu) / self.sigma
        return 0.5 * math.erfc(-z / math.sqrt(2))

    @cached_property
    def normalizer(self) -> float:
        """Z = P_ln(t*) + (1 - t*) p_ln(t*)."""
        return self.mass_below_mode + (1 - self.mode) * self.density_at_mode

    def icdf(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Maps uniform u in (0, 1) to noise levels: logit-normal below t*, linear above."""
        mass = u * self.normalizer
        below = LogitNormal.icdf(self, jnp.minimum(mass, self.mass_below_mode))
        above = self.mode + (mass - self.mass_below_mode) / self.density_at_mode
        return jnp.minimum(jnp.where(mass < self.mass_below_mode, below, above), 1.0)

    def cdf(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns the probability of levels up to t, in closed form."""
        below = LogitNormal.cdf(self, jnp.minimum(t, self.mode)) / self.normalizer
        above = 1.0 - (1.0 - t) * self.density_at_mode / self.normalizer
        return jnp.where(t < self.mode, below, above)


def least_level(distribution: NoiseDistribution) -> float:
    """Returns the level below which training takes 2 of 10,000 examples."""
    return float(distribution.icdf(jnp.float32(2e-4)))


def sample_timesteps(
    keys: Key[Array, " b"],
    distributions: Mapping[str, NoiseDistribution],
    cond_prob: Mapping[str, float],
    together: Mapping[tuple[str, ...], float] | None = None,
) -> tuple[dict[str, Float[Array, " b"]], dict[str, Bool[Array, " b"]]]:
    """Samples each example's noise levels, and which modalities are its clean condition.

    Args:
      keys: one per example.
      distributions: by modality, whose levels are independent.
      cond_prob: probability that a modality alone is the condition (the paper's p_i2d for the
        image, p_d2i for the depth).
      together: probability that several are. An example has one condition or none, so that all
        probabilities sum to at most 1.

    Returns:
      t {name: [b]}, 0 where the modality is given, and is_cond {name: bool [b]}.
    """

    several = list((together or {}).items())

    def sample_one(key: Key[Array, ""]) -> tuple[dict[str, Array], dict[str, Array]]:
        task_key, *level_keys = jax.random.split(key, len(distributions) + 1)
        task = jax.random.uniform(task_key)  # one number decides: joint, or which modality is given
        t, is_cond, start = {}, {}, 0.0
        for names, probability in [((n,), cond_prob[n]) for n in distributions] + several:
            stop = start + probability
            chosen = (start <= task) & (task < stop)
            start = stop
            for name in names:
                is_cond[name] = is_cond[name] | chosen if name in is_cond else chosen
        for k, (name, distribution) in zip(level_keys, distributions.items(), strict=True):
            u = jax.random.uniform(k, minval=1e-6, maxval=1.0 - 1e-6)
            t[name] = jnp.where(is_cond[name], 0.0, distribution.icdf(u))
        return t, is_cond

    return jax.vmap(sample_one)(keys)
