"""Trajectories: each modality's noise levels in a sampling run, so that order is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing.diffusion.noise_levels import timestep_shift

T = TypeVar("T", np.ndarray, jax.Array)


def tilt(t: T, alpha: float) -> T:
    """f_alpha(t) = alpha t / (1 + (alpha - 1) t) (paper, section on inference).

    The same as `timestep_shift` with mu = ln alpha.
    """
    return t / (t + (1.0 - t) / alpha)  # in this form rounding keeps the ends and never exceeds 1


@dataclass(frozen=True)
class Trajectory:
    """Noise levels along a sampling run.

    schedule: {name: [steps + 1]}, each non-increasing, within [0, 1] and 0 at the end. A condition
    is 0 throughout (clean), or follows a curve at whose levels it is noised again.
    """

    schedule: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        lengths = {len(t) for t in self.schedule.values()}
        if len(lengths) != 1 or lengths.pop() < 2:
            raise ValueError("every modality needs the same number of levels, at least 2")
        for name, t in self.schedule.items():
            falls = np.all(np.diff(t) <= 1e-6)  # False for NaN, as all that follow
            if not (falls and t.min() >= 0 and t.max() <= 1 and t[-1] == 0):
                raise ValueError(f"levels of {name!r} must fall from at most 1 to 0")

    @property
    def steps(self) -> int:
        """Number of sampler steps."""
        return len(next(iter(self.schedule.values()))) - 1


def timesteps(steps: int, mu: float = 0.0) -> np.ndarray:
    """Returns steps + 1 levels from 1 to 0: uniform, then shifted by mu towards noise."""
    return np.array(timestep_shift(jnp.linspace(1.0, 0.0, steps + 1), mu), np.float32)


def resolution_shift(tokens: int, steps: int) -> float:
    """Returns FLUX.2's mu of `timesteps` for an image of so many tokens, references not counted.

    Linear in the tokens, at 10 and at 200 steps, and in the steps between them; above 4300 tokens,
    that of 200 steps for any number of them. Source: the code of FLUX.2.
    """
    few = 8.73809524e-5 * tokens + 1.89833333
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    return few + (many - few) * (steps - 10) / 190


def joint(
    primary: str,
    others: tuple[str, ...],
    steps: int,
    *,
    alpha: float = 1.0,
    mu: float = 0.0,
    least: Mapping[str, float] | None = None,
) -> Trajectory:
    """Everything is generated: the primary from 1 to 0, the others along f_alpha of it.

    alpha > 1 generates the primary first.

    least: by modality, the lowest level that training covers (`noise_levels.least_level`), 0 where
      absent. One of the others that is ahead of the primary waits there until the primary arrives.
    """
    t = timesteps(steps, mu)
    tilted = np.asarray(tilt(t, alpha), np.float32)
    # A step between low levels moves most of the way to the network's estimate, which is of no use
    # where the network was not trained.
    waits = {name: np.minimum(np.float32((least or {}).get(name, 0.0)), t) for name in others}
    return Trajectory({primary: t} | {name: np.maximum(tilted, waits[name]) for name in others})


def conditional(
    targets: tuple[str, ...], cond: tuple[str, ...], steps: int, mu: float = 0.0
) -> Trajectory:
    """The targets are generated from a clean condition, at t = 0 throughout (i2d and d2i)."""
    t = timesteps(steps, mu)
    return Trajectory(dict.fromkeys(targets, t) | dict.fromkeys(cond, np.zeros_like(t)))


def partial(
    targets: tuple[str, ...],
    cond: str,
    steps: int,
    alpha: float,
    *,
    mu: float = 0.0,
    least: float = 0.0,
) -> Trajectory:
    """Targets are generated; the condition is noised again to f_alpha of their level.

    Small alpha reveals the condition early and is close to clean conditioning; large alpha reveals
    it late. Below `least`, the lowest level that training covers, the condition is clean.
    """
    t = timesteps(steps, mu)
    tilted = np.asarray(tilt(t, alpha), np.float32)
    return Trajectory(dict.fromkeys(targets, t) | {cond: np.where(tilted < least, 0.0, tilted)})
