"""Evaluation as the training loop calls it: when it is due, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from modality_forcing.config import Config
from modality_forcing.train.inputs import Inputs
from modality_forcing.train.state import Params


@dataclass(frozen=True)
class EvalResult:
    """Scalars by name, without the "eval/" of their rows, and an image sheet u8 [h w 3]."""

    scalars: Mapping[str, float]
    sheet: np.ndarray


# Evaluates weights, sharded as in training. All processes call it at the same steps. It keeps no
# reference to them, since the next step donates their memory.
Evaluate = Callable[[Params], EvalResult]

# Makes it from what a run has opened already. None: the config evaluates nothing. Raises UserError,
# before anything is written, for what the config names and does not exist.
MakeEvaluate = Callable[[Config, Inputs, Mesh], Evaluate | None]


def is_due(config: Config, step: int, last_step: int) -> bool:
    """Returns whether to evaluate after `step` updates, where the last time was `last_step`.

    The initial and the final weights are evaluated too. A checkpoint holds `last_step`, so that a
    resumed run evaluates each step once.
    """
    every = config.eval.every
    return every > 0 and step != last_step and (step % every == 0 or step == config.train.steps)
