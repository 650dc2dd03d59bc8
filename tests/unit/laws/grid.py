"""Tables of known laws on a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modality_forcing.laws.forms import FORMS, Array, Design, Form
from modality_forcing.laws.table import Table

TRUE = {"chinchilla": (1.8, 480.0, 0.35, 2100.0, 0.37), "power": (0.05, 20.0, 0.3)}


def grid_table(
    form: Form = FORMS["chinchilla"],
    true: Sequence[float] = (),
    noise: float = 0.02,
    seed: int = 1,
    **axes: np.ndarray,
) -> Table:
    """A table of a known law on a grid, with noise in the log."""
    axes = axes or {"N": np.geomspace(1e7, 1e10, 6), "D": np.geomspace(1e8, 1e11, 6)}
    variables = dict(zip(axes, (x.ravel() for x in np.meshgrid(*axes.values())), strict=True))
    law = form.predict(true or TRUE[form.name], variables)
    return Table.of(variables, np.exp(law + np.random.default_rng(seed).normal(0, noise, law.size)))


def theta_of(design: Design, parameters: Array) -> Array:
    """Returns the inverse of `Design.natural`."""
    logs = np.where(
        design.is_coefficient, np.log(np.where(design.is_coefficient, parameters, 1)), parameters
    )
    return logs @ np.asarray(np.linalg.inv(design.to_natural), np.float64).T
