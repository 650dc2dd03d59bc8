"""A benchmark as MoGe bundles it: an index, and per frame a folder with image, depth and camera.

Names are the lines of the index, paths of frame folders below it (for DIODE
val/indoors/scene_00019/...). Format: microsoft/MoGe, moge/test/dataloader.py and moge/utils/io.py;
data: Ruicheng/monocular-geometry-evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from modality_forcing.datasets.common.formats import (
    check_same_size,
    read_json,
    read_lines,
    read_rgb,
)
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame
from modality_forcing.paths import is_file
from modality_forcing.storage.log_depth import read_log_depth


@dataclass(frozen=True)
class Bundle:
    """One set's unpacked bundle. Pixels of finite depth are valid: neither unknown nor sky."""

    index: Path
    num_expected: int | None  # frames of the official list
    kind: Literal["bundle"] = "bundle"

    def names(self) -> tuple[str, ...]:
        """Returns the frames in the index; raises UserError if unreadable, empty or repeating."""
        names = tuple(line.strip() for line in read_lines(self.index) if line.strip())
        if not names or len(set(names)) < len(names):
            what = "lists a frame twice" if names else "lists no frames"
            raise UserError(what, where=self.index, hint="unpack the bundle again")
        return names

    def files(self, name: str) -> Mapping[str, Path]:
        """Returns the expected paths of a frame's files by role."""
        folder = self.index.parent / name
        candidates = [folder / "image.jpg", folder / "image.png"]
        image = next((path for path in candidates if is_file(path)), candidates[0])
        return {"image": image, "depth": folder / "depth.png", "meta": folder / "meta.json"}

    def read(self, name: str) -> Frame:
        """Reads a frame; raises UserError for a damaged file or different sizes."""
        files = self.files(name)
        image = read_rgb(files["image"])
        depth, unit = read_log_depth(files["depth"])
        check_same_size(image, depth, files["image"], files["depth"])
        valid = np.isfinite(depth)
        # Bundles of an older format store their unit in the file.
        depth = np.where(valid, depth * np.float32(1 if unit is None else unit), np.float32(0))
        return Frame(name, image, depth, valid, _read_intrinsics(files["meta"]))


def find_bundle(benchmark: Benchmark, root: Path) -> Bundle | None:
    """Returns the bundle in `root` or in its subfolder for the set; None if there is no index."""
    for folder in (root, root / benchmark.folder):
        for index in benchmark.indexes:
            if is_file(folder / index):
                return Bundle(folder / index, benchmark.num_bundle_images)
    return None


def _read_intrinsics(path: Path) -> np.ndarray:
    """Returns the normalized `intrinsics` f32 [3 3] of a meta.json."""
    meta = read_json(path)
    try:
        matrix = np.array(meta["intrinsics"], np.float32)
    except (KeyError, TypeError, ValueError):
        matrix = np.zeros(0, np.float32)
    usable = matrix.shape == (3, 3) and bool(np.all(np.isfinite(matrix)))
    if not usable or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        what = "has no 'intrinsics' of 3 x 3 numbers"
        raise UserError(what, where=path, hint="unpack the bundle again")
    return matrix
