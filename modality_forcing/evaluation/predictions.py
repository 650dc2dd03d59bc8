"""Predicted depth on disk, one file per frame: another protocol or a restart costs no inference."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modality_forcing import numpy_io
from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file, read_bytes, write_file
from modality_forcing.train.workdir import resolve_paths
from modality_forcing.tree import JsonObject

FORMAT = 2  # of the files: a .npy, which numpy reads, and the SHA-256 of its bytes
_CHECKSUM = 32  # bytes


class PredictionStore:
    """The predictions of one model with one set of options for one list of frames.

    identity: everything they depend on, as JSON-able values. Its digest names the subfolder of
    `folder`, and about.json there holds all of it, so two settings never share a file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], resolution: int):
        identity = {"format": FORMAT, **identity}
        canonical = json.dumps(identity, sort_keys=True)
        self.digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        self.folder, self.resolution = folder / self.digest, resolution
        about = self.folder / "about.json"
        if not is_file(about):
            write_file(about, json.dumps(identity, indent=1, sort_keys=True) + "\n")

    def get(self, index: int) -> np.ndarray | None:
        """Returns depth and uncertainty f32 [2 r r] of a frame; None if not stored intact."""
        try:
            content = read_bytes(self._path(index))
        except UserError:
            return None
        array, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if hashlib.sha256(array).digest() != checksum:
            return None
        stored = np.lib.format.read_array(io.BytesIO(array), allow_pickle=False)
        fits = stored.shape == (2, self.resolution, self.resolution) and stored.dtype == np.float32
        return stored if fits else None

    def put(self, index: int, depth: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
        """Stores depth and uncertainty [r r] and returns them as `get` does.

        A prediction that is not finite is stored as it is: it scores as the worst, and a second
        inference would not change it. Raises UserError if the file cannot be written.
        """
        if depth.shape != (self.resolution, self.resolution) or uncertainty.shape != depth.shape:
            shapes = f"depth {depth.shape} and uncertainty {uncertainty.shape}"
            raise ValueError(f"{shapes} of {self.resolution} pixels a side")
        both = np.stack([depth, uncertainty]).astype(np.float32)
        array = numpy_io.npy_bytes(both)
        write_file(self._path(index), array + hashlib.sha256(array).digest())
        return both

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npy"


class UnstoredPredictions:
    """Predictions that are kept nowhere, for weights that are scored once."""

    def get(self, index: int) -> np.ndarray | None:
        """Returns None."""
        return None

    def put(self, index: int, depth: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
        """Returns depth and uncertainty as f32 [2 r r]."""
        return np.stack([depth, uncertainty]).astype(np.float32)


def network_settings(config: Config) -> JsonObject:
    """Returns what besides weights a network's results depend on: its sizes, and its encoders.

    Encoders are known by their resolved paths.
    """
    parts = to_dict(resolve_paths(config))
    return {name: parts[name] for name in ("model", "text", "modalities")}


def names_digest(names: tuple[str, ...]) -> str:
    """Returns a digest of a list of frames; raises UserError if it is empty."""
    if not names:
        raise UserError("no frames to score", hint="list at least one")
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
