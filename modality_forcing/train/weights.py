"""The one door to weights: what a location names, its config, and its weights on request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from modality_forcing.config import Config
from modality_forcing.encoders.locate import is_hub
from modality_forcing.models.int8 import quantize_tree
from modality_forcing.paths import as_path
from modality_forcing.train import checkpoint, exported, released
from modality_forcing.train.sharding import Shardings
from modality_forcing.train.state import Params


@runtime_checkable
class Source(Protocol):
    """Weights that were found; those of a release, an export or a checkpoint."""

    @property
    def name(self) -> str:
        """The name in results: a step of training, or the kind of a release."""
        ...

    @property
    def where(self) -> str | Path:
        """The location of exactly these weights."""
        ...

    def load(
        self, shardings: Shardings | None = None, *, dtype: str = "", int8: bool = False
    ) -> tuple[Config, Params]:
        """Returns the config and the weights; raises UserError if they are damaged.

        shardings: from the weights' shapes to their shardings; by default they go to the first
        device. dtype: in which a release is read; all else keeps its own. int8: matrices of the
        blocks become `Int8Weight`.
        """
        ...


@dataclass(frozen=True)
class Step:
    """A checkpoint of a run, whose EMA weights are read."""

    where: Path

    @property
    def name(self) -> str:
        """The step."""
        return self.where.name

    def load(
        self, shardings: Shardings | None = None, *, dtype: str = "", int8: bool = False
    ) -> tuple[Config, Params]:
        """Returns the config and the weights, see `Source`."""
        config, params = checkpoint.load(self.where, shardings)
        return config, quantize_tree(params) if int8 else params


def open_weights(where: str | Path, resolution: int | None = None) -> Source:
    """Finds weights; only headers are read.

    Args:
      where: a workdir, its `checkpoints/` or one step of it; an export, as its folder, its
        safetensors file or hf:OWNER/NAME[@REVISION]; or a released network, as mf-flux2:WHERE or
        flux2-klein:WHERE. Folders and files may be in buckets.
      resolution: pixels per side for a release, which has no config of its own.

    Raises UserError if there is no such thing, or it is unfinished, damaged or of another version.
    """
    if released.is_released(where):
        return released.open_released(where, resolution)
    path = as_path(where)
    if is_hub(where) or exported.is_export(path):
        return exported.open_export(where)
    return Step(checkpoint.resolve_checkpoint(path))


def describe(where: str | Path) -> tuple[Config, str]:
    """Returns the config of weights and the dtype of most of them; only headers are read.

    Raises UserError as `open_weights`, and for a release whose files are not those of one network.
    """
    source = open_weights(where)
    if isinstance(source, released.Released):
        _ = source.shapes  # raises where the files do not fit
        return source.config, source.dtype
    if isinstance(source, exported.Export):
        dtypes = Counter(entry["dtype"] for entry in source.manifest["weights"].values())
        return source.config, dtypes.most_common(1)[0][0]
    step = as_path(source.where)
    config = checkpoint.parse_config(checkpoint.read_metadata(step)["config"], step)
    return checkpoint.without_lora(config), "float32"
