"""The interface of a modality: its tokens, how they are made and read, and how they are noised."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from modality_forcing import modalities
from modality_forcing.config import Config, ModalityConfig
from modality_forcing.data.records import Record
from modality_forcing.diffusion.flow import Prediction
from modality_forcing.diffusion.noise_levels import (
    LogitNormal,
    NoiseDistribution,
    PlateauLogitNormal,
    least_level,
)
from modality_forcing.errors import UserError
from modality_forcing.tree import Tree
from modality_forcing.viz.images import colorize_disparity, to_u8

# A batch of data/pipeline.py: arrays with a leading b; "text" is a mapping of them.
Batch = Tree
Spec = tuple[tuple[int, ...], DTypeLike]  # shape without the leading b, dtype
RecordInput = Callable[[Record], np.ndarray]

_DISTRIBUTIONS = {"logit_normal": LogitNormal, "plateau": PlateauLogitNormal}


@dataclass(frozen=True)
class Modality(ABC):
    """What the model generates or is conditioned on, such as images; a subclass defines its tokens.

    Both directions run inside jit and are shared by training, sampling and evaluation.
    """

    name: str
    size: tuple[int, int]  # rows and columns of pixels
    patch: int  # pixels along a side of a token
    position_id: int
    detokenizer_layers: int
    prediction: Prediction
    noise_distribution: NoiseDistribution
    loss_weight: float
    cond_prob: float
    cond_prob_with: Mapping[str, float] = field(default_factory=dict)  # by names joined with +
    latent_channels: int = 0  # of the latents in a batch, for a modality that can read them

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.size[0] // self.patch, self.size[1] // self.patch

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
    def inputs(self) -> dict[str, Spec]:
        """What `to_tokens` reads of a batch, by name."""

    @property
    def given_inputs(self) -> dict[str, Spec]:
        """What a generator reads of a batch where this is given: `inputs`, but for latents."""
        return self.inputs

    @cached_property
    def least_level(self) -> float:
        """The lowest noise level that training covers; see `noise_levels.least_level`."""
        return least_level(self.noise_distribution)

    @property
    def is_image(self) -> bool:
        """Whether `colorize` keeps all of it, so that a PNG will do."""
        return False

    @property
    def record_inputs(self) -> Mapping[str, RecordInput]:
        """Those of `inputs` that a batch does not have anyway, and how a record gives them.

        The functions run on the host, in loader processes too: they are picklable by name, and
        their modules import no jax. A source fills an optional field of a record that has such a
        name if it can.
        """
        return {}

    @abstractmethod
    def to_tokens(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Returns clean tokens x0 and the mask of observed values; others may be anything."""

    @abstractmethod
    def from_tokens(self, x0: Float[Array, "b n c"]) -> Array:
        """Returns what a person would look at: the inverse of `to_tokens` where all is observed."""

    def project(self, values: np.ndarray) -> np.ndarray:
        """Returns an enlarged or blended map [h w ...] with values that the modality may have.

        By default as it is. What is 0 in all channels stays so: nothing is known there.
        """
        return values

    def colorize(self, decoded: np.ndarray) -> np.ndarray:
        """Returns colors u8 [b h w 3] of what `from_tokens` returns, for pictures.

        By default [b h w 3] are colors in [0, 1], and [b h w] is depth, shown as disparity.
        """
        if decoded.ndim == 4:
            return to_u8(decoded)
        return np.stack([colorize_disparity(one) for one in decoded])


def record_inputs(config: Config) -> dict[str, RecordInput]:
    """Returns the `record_inputs` of all modalities of a config."""
    modalities = build(config).values()
    return {name: read for m in modalities for name, read in m.record_inputs.items()}


def check_given(given: Mapping[str, Modality], batch: Tree, count: int) -> None:
    """Raises UserError unless a batch has the inputs of what is given, for `count` examples."""
    for name, m in given.items():
        for key, (shape, _) in m.given_inputs.items():
            if key not in batch:
                what = f"{name} is given, but the batch has no {key!r}"
                raise UserError(what, hint=f"add {', '.join(m.given_inputs)}")
            if (found := np.shape(batch[key])) != (wanted := (count, *shape)):
                what = f"{key!r} of the batch has the shape {found}, for {count} captions"
                raise UserError(what, hint=f"it must be {wanted}")


def build(config: Config, size: tuple[int, int] | None = None) -> dict[str, Modality]:
    """Returns the modalities of a config in its order; the first is the primary one.

    size: rows and columns of pixels, by default the config's square. Raises UserError if a
    modality's patches do not fill it.
    """
    size = size or (config.data.resolution, config.data.resolution)
    built = {name: _build(name, m, size) for name, m in config.modalities.items()}
    given_together(built)  # raises for what does not go together
    return built


def given_together(modalities: Mapping[str, Modality]) -> dict[tuple[str, ...], float]:
    """Returns the probabilities that several modalities are the condition of an example.

    Raises UserError for a modality that is not there, for all of them at once, and for
    probabilities of conditions that sum to more than 1.
    """
    found: dict[tuple[str, ...], float] = {}
    for name, m in modalities.items():
        for others, probability in m.cond_prob_with.items():
            names = {name, *others.split("+")}
            key = f"modalities.{name}.cond_prob_with names {others!r}"
            if unknown := sorted(names - modalities.keys()):
                hint = f"the modalities are {', '.join(modalities)}"
                raise UserError(f"{key}, and there is no {unknown[0]!r}", hint=hint)
            if not 1 < len(names) < len(modalities):
                hint = "leave at least one modality to be generated, and name others than itself"
                what = f"{key}, which gives {len(names)} of {len(modalities)} modalities"
                raise UserError(what, hint=hint)
            together = tuple(n for n in modalities if n in names)
            found[together] = found.get(together, 0.0) + probability
    total = sum(m.cond_prob for m in modalities.values()) + sum(found.values())
    if total > 1 + 1e-9:
        what = f"cond_prob and cond_prob_with of all modalities sum to {total:g}"
        raise UserError(what, hint="they must sum to at most 1")
    return found


def _build(name: str, m: ModalityConfig, size: tuple[int, int]) -> Modality:
    if min(size) < m.patch or any(side % m.patch for side in size):
        what = f"{size[1]} x {size[0]} pixels are not whole patches of {m.patch} ({name})"
        raise UserError(what, hint=f"give multiples of {m.patch}")
    kinds = {info.name for info in pkgutil.iter_modules(modalities.__path__)} - {"base"}
    if m.kind not in kinds:
        hint = f"choose one of {', '.join(sorted(kinds))}"
        raise UserError(f"modalities.{name}.kind is {m.kind!r}", hint=hint)
    module = importlib.import_module(f"{modalities.__name__}.{m.kind}")
    distribution = _DISTRIBUTIONS[m.noise.distribution]
    return module.MODALITY(
        name=name,
        size=size,
        patch=m.patch,
        position_id=m.position_id,
        detokenizer_layers=m.detokenizer_layers,
        prediction=m.prediction,
        noise_distribution=distribution(m.noise.timestep_shift, m.noise.sigma),
        loss_weight=m.loss_weight,
        cond_prob=m.cond_prob,
        cond_prob_with=m.cond_prob_with,
        latent_channels=m.latent_channels,
    )
