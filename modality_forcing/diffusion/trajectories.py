"""Trajectories: noise levels per modality from the first step to t = 0. The order of generation is data, not a mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from modality_forcing.diffusion.noise_levels import shift


def tilt(t: Any, alpha: float) -> Any:
    """f_alpha(t) = alpha t / (1 + (alpha - 1) t): the same group as `shift`, with mu = ln alpha (paper, section on inference)."""
    return t / (
        t + (1.0 - t) / alpha
    )  # in this form rounding can neither move the ends nor exceed 1


@dataclass(frozen=True)
class Trajectory:
    """Noise levels along a sampling run.

    `levels` {name: [steps + 1]}, each non-increasing and ending at 0 for what is generated. A modality that is given
    holds still: its levels are all 0 (clean conditioning) or follow a curve at which the given tokens are re-noised.
    """

    levels: Mapping[str, np.ndarray]

    def __post_init__(self):
        lengths = {len(v) for v in self.levels.values()}
        if len(lengths) != 1 or lengths.pop() < 2:
            raise ValueError("every modality needs the same number of levels, at least 2")
        for name, t in self.levels.items():
            if not (
                np.all(np.diff(t) <= 1e-6) and t.min() >= 0 and t.max() <= 1 and t[-1] == 0
            ):  # NaN fails all
                raise ValueError(f"levels of {name!r} must fall from at most 1 to 0")

    @property
    def steps(self) -> int:
        """Number of sampler steps."""
        return len(next(iter(self.levels.values()))) - 1


def grid(steps: int, mu: float = 0.0) -> np.ndarray:
    """Returns steps + 1 levels from 1 to 0, uniform and then shifted by mu towards noise."""
    return np.array(shift(jnp.linspace(1.0, 0.0, steps + 1), mu), np.float32)


def arc_grid(
    steps: int, alpha: float, mu: float = 0.0, span: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the levels of a lead modality and of one tilted by alpha, at equal steps along the joint path in log-SNR.

    With a strong tilt, uniform steps leave the second modality at a high level before its single last step (0.66 for
    alpha = 32 and 50 steps). Here each step moves the same distance in clipped logit space, both modalities counted.

    Args:
      span: logits beyond +-span count as fully noisy or clean, so that the end points are at a finite distance.
    """
    tilts = np.array([[mu], [mu + np.log(alpha)]])
    reach = span + np.abs(tilts).max()  # from where both are noise to where both are clean
    x = np.linspace(reach, -reach, 4001)  # logit of the lead before its shift
    pair = np.clip(x + tilts, -span, span)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(pair, axis=1), axis=0))])
    logits = np.interp(np.linspace(0.0, length[-1], steps + 1), length, x) + tilts
    t = np.where(
        logits >= span, 1.0, np.where(logits <= -span, 0.0, 1 / (1 + np.exp(-logits)))
    ).astype(np.float32)
    t[:, 0], t[:, -1] = 1.0, 0.0
    return t[0], t[1]


def joint(
    lead: str,
    others: tuple[str, ...],
    steps: int,
    alpha: float = 1.0,
    mu: float = 0.0,
    spacing: str = "uniform",
):
    """Everything is generated: the lead runs 1 to 0, the others along f_alpha of it (alpha > 1: the lead comes first)."""
    if spacing == "arc":
        t, tilted = arc_grid(steps, alpha, mu)
    else:
        t = grid(steps, mu)
        tilted = np.asarray(tilt(t, alpha), np.float32)
    return Trajectory({lead: t} | dict.fromkeys(others, tilted))


def conditional(
    target: tuple[str, ...], given: tuple[str, ...], steps: int, mu: float = 0.0
) -> Trajectory:
    """The targets are generated from what is given clean, at t = 0 throughout (i2d and d2i)."""
    t = grid(steps, mu)
    return Trajectory(dict.fromkeys(target, t) | dict.fromkeys(given, np.zeros_like(t)))


def partial(target: str, given: str, steps: int, alpha: float, mu: float = 0.0) -> Trajectory:
    """The target is generated; the given modality is followed loosely, re-noised to f_alpha of the target's level.

    Small alpha reveals the given modality early and is close to clean conditioning; large alpha reveals it late.
    """
    t = grid(steps, mu)
    return Trajectory({target: t, given: np.asarray(tilt(t, alpha), np.float32)})
