"""What a modality is: a name, a place in the token sequence, a way in and a way out, and how it is noised."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Bool, Float

from modality_forcing import modalities
from modality_forcing.config import Config, ModalityConfig
from modality_forcing.diffusion.flow import Prediction
from modality_forcing.diffusion.noise_levels import LogitNormal, NoiseLevels, PlateauLogitNormal
from modality_forcing.errors import UserError

Batch = Mapping[
    str, Any
]  # what data/pipeline.py yields: arrays with a leading b, text a mapping of them


@dataclass(frozen=True)
class Modality(ABC):
    """One thing the model generates or is given; a subclass says how it becomes tokens and back.

    Both directions run inside jit and are shared by training, sampling and evaluation.
    """

    name: str
    resolution: int  # pixels a side of the picture
    patch: int  # pixels a side of a token
    position_id: int
    detokenizer: int
    prediction: Prediction
    levels: NoiseLevels
    weight: float
    given: float
    latents: int = (
        0  # channels of the latents that a batch brings, for a modality that can take them
    )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        side = self.resolution // self.patch
        return side, side

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c): tokens and channels."""
        return self.grid[0] * self.grid[1], self.channels

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of a token."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """What `encode` reads of a batch: shape without the leading b, and dtype, by name."""

    @abstractmethod
    def encode(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Returns clean tokens x0, and which of their values were observed; the others may hold anything."""

    @abstractmethod
    def decode(self, x0: Float[Array, "b n c"]) -> Array:
        """Returns what a person would look at: the inverse of `encode` where everything was observed."""


def build(config: Config) -> dict[str, Modality]:
    """Returns the modalities of a config, in its order; the first leads."""
    return {name: _build(name, m, config.data.resolution) for name, m in config.modalities.items()}


def _build(name: str, m: ModalityConfig, resolution: int) -> Modality:
    known = sorted(
        info.name for info in pkgutil.iter_modules(modalities.__path__) if info.name != "base"
    )
    if m.kind not in known:
        raise UserError(
            f"modalities.{name}.kind is {m.kind!r}", hint=f"choose one of {', '.join(known)}"
        )
    module = importlib.import_module(f"{modalities.__name__}.{m.kind}")
    levels = {"logit_normal": LogitNormal, "plateau": PlateauLogitNormal}[m.noise.distribution](
        m.noise.timestep_shift, m.noise.sigma
    )
    return module.MODALITY(
        name=name,
        resolution=resolution,
        patch=m.patch,
        position_id=m.position_id,
        detokenizer=m.detokenizer_layers,
        prediction=m.prediction,
        levels=levels,
        weight=m.loss_weight,
        given=m.cond_prob,
        latents=m.latent_channels,
    )
