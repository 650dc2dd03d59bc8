"""Runs of the network on lists of any length: batches of one size, each compiled once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from modality_forcing.config import SampleConfig
from modality_forcing.errors import UserError
from modality_forcing.generator import Generator
from modality_forcing.inference.fit import Arrays, Fitted

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How examples are sampled: an example's noise is a function of the seed and the repetition."""

    options: SampleConfig
    seed: int = 0
    repetition: int = 0


def predict(
    generator: Generator,
    task: str,
    fitted: Sequence[Fitted],
    captions: Sequence[str],
    *,
    sampling: Sampling,
    member: int = 0,
    batch: int,
    free_text: bool = False,
) -> list[list[Arrays]]:
    """Runs the network on fitted inputs and returns what it made of each placement of each.

    member: counts the samples of an ensemble. batch: examples a run; the last run is filled up with
    copies, so that it is the same program. free_text: as in `Generator.run`.

    Raises UserError for values that are not finite.
    """
    rows = [(x, text) for f, text in zip(fitted, captions, strict=True) for x in f.inputs]
    made: list[Arrays] = []
    for chunk in _chunks(rows, batch):
        padded = chunk + [chunk[-1]] * (batch - len(chunk))
        inputs = {n: np.stack([x[n] for x, _ in padded]) for n in padded[0][0]}
        images = generator.run(
            task,
            [text for _, text in padded],
            batch=inputs,
            options=sampling.options,
            seed=sampling.seed,
            index=np.full(batch, sampling.repetition),
            sample_index=member,
            free_text=free_text,
        ).images
        made += [check_finite({n: x[i] for n, x in images.items()}) for i in range(len(chunk))]
    parts = iter(made)
    return [[next(parts) for _ in f.inputs] for f in fitted]


def generate(
    generator: Generator,
    task: str,
    captions: Sequence[str],
    *,
    sampling: Sampling,
    batch: int,
    refine: bool = False,
    free_text: bool = False,
    where: object = None,
) -> Iterator[Arrays]:
    """Yields what the network makes of each caption; its noise is keyed by the place in the list.

    batch: as for `predict`. refine, free_text: as in `Generator.run`. where: named in errors.

    Raises UserError for values that are not finite.
    """
    for start in range(0, len(captions), batch):
        chunk = list(captions[start : start + batch])
        output = generator.run(
            task,
            chunk + chunk[-1:] * (batch - len(chunk)),
            options=sampling.options,
            seed=sampling.seed,
            index=np.arange(start, start + batch),
            refine=refine,
            free_text=free_text,
        )
        images = check_finite(output.images, where)
        for i in range(len(chunk)):
            yield {name: x[i] for name, x in images.items()}


def check_finite(made: Mapping[str, np.ndarray], where: object = None) -> Arrays:
    """Returns what a network made; raises UserError, naming its weights, if it is not finite."""
    if bad := [name for name, x in made.items() if not np.isfinite(x).all()]:
        what = f"generated {' and '.join(bad)} with values that are not finite"
        hint = "check the weights of it and its encoders, or change the guidance, steps or solver"
        raise UserError(what, where=where, hint=hint)
    return made


def _chunks(rows: list[T], size: int) -> Iterator[list[T]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
