"""Predicted depth kept on disk, a file a frame, so that a second protocol, or an interrupted run, costs no second inference."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.atomic_io import write_file
from modality_forcing.errors import UserError

FORMAT = 1  # of the files


class Predictions:
    """The predictions of one model, set up one way, for one list of frames, below `folder`.

    identity: whatever they depend on, as JSON-able values. Its digest names the subfolder and the whole of it is written
    there, so two setups never share a file and a person can see what a file is.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resolution: int):
        self.identity = {"format": FORMAT, **identity}
        self.digest = hashlib.sha256(
            json.dumps(self.identity, sort_keys=True).encode()
        ).hexdigest()[:12]
        self.folder, self.resolution = folder / self.digest, resolution
        if not (self.folder / "about.json").is_file():
            write_file(
                self.folder / "about.json",
                json.dumps(self.identity, indent=1, sort_keys=True) + "\n",
            )

    def get(self, index: int) -> np.ndarray | None:
        """Returns depth and uncertainty f32 [2 r r] of a frame, or None where there is no (whole) file."""
        try:
            with open(self._path(index), "rb") as opened:
                stored = np.lib.format.read_array(opened, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = stored.shape == (2, self.resolution, self.resolution) and stored.dtype == np.float32
        return stored if fits else None

    def put(self, index: int, depth: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
        """Keeps depth and uncertainty [r r] of a frame and returns them as `get` does; raises UserError if it cannot.

        A prediction that is not finite is kept as it is: it scores as the worst, and recomputing would not hint it.
        """
        if depth.shape != (self.resolution, self.resolution) or uncertainty.shape != depth.shape:
            raise ValueError(
                f"depth {depth.shape} and uncertainty {uncertainty.shape} of {self.resolution} pixels a side"
            )
        both, content = np.stack([depth, uncertainty]).astype(np.float32), io.BytesIO()
        np.lib.format.write_array(content, both, allow_pickle=False)
        write_file(self._path(index), content.getvalue())
        return both

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npy"


def names_digest(names: tuple[str, ...]) -> str:
    """Returns a digest of a list of frames; raises UserError if it is empty, since then nothing can be scored."""
    if not names:
        raise UserError("no frames to score", hint="list at least one")
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
