"""A loaded network: how inputs get its size, and how tasks are sampled."""

from __future__ import annotations

from modality_forcing.data.resize import Size
from modality_forcing.generator import Generator, override_sampling
from modality_forcing.inference import fit as fits
from modality_forcing.inference.batches import Sampling
from modality_forcing.inference.inputs import as_number, as_whole
from modality_forcing.tasks import parse


class LoadedNetwork:
    """A generator with the settings of its callers; `Pipeline` says what they are.

    Raises UserError for an unknown fit and for a batch without examples.
    """

    def __init__(self, generator: Generator, *, fit: str | None = None, batch: int = 8):
        self.generator, self.batch = generator, as_whole("batch", batch, 1)
        self.fit = None if fit is None else fits.parse_fit(fit)

    @property
    def size(self) -> Size:
        """Rows and columns of pixels of the network."""
        return self.generator.modalities[self.generator.primary].size

    def sampling(
        self,
        task: str,
        *,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        condition_guidance: float | None = None,
        solver: str | None = None,
        log2_alpha: float | None = None,
    ) -> Sampling:
        """Returns how a task is sampled; raises UserError if the network cannot do it."""
        scale = None if guidance is None else as_number("guidance", guidance)
        weight = condition_guidance
        if weight is not None:
            weight = as_number("condition_guidance", weight)
        cond = parse(task, list(self.generator.modalities)).given
        options = override_sampling(
            self.generator.config,
            steps=None if steps is None else as_whole("steps", steps, 1),
            solver=solver,
            log2_alpha=None if log2_alpha is None else as_number("log2_alpha", log2_alpha, -64, 64),
            guidance=None if scale is None else {self.generator.primary: scale},
            condition_guidance=None if weight is None else dict.fromkeys(cond, weight),
        )
        self.generator.trajectory(task, options)
        return Sampling(options, as_whole("seed", seed, 0))
