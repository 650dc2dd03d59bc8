"""Metric depth: scale and shift from measurements of some pixels, such as a few laser points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing.data.files import DEPTH_SUFFIXES, DepthFormat, read_depth
from modality_forcing.data.names import name_key
from modality_forcing.data.resize import Size, format_size
from modality_forcing.errors import UserError
from modality_forcing.evaluation.alignment import Alignment, align_affine_l1, align_scale_l1
from modality_forcing.inference.result import Result
from modality_forcing.paths import is_dir, is_file, read_text, require_file
from modality_forcing.text_io import parse_csv

# With fewer measurements only the scale is fitted: two parameters follow the errors of a few.
MIN_AFFINE = 8
_ALIGN_AFFINE, _ALIGN_SCALE = jax.jit(align_affine_l1), jax.jit(align_scale_l1)
_LEAST = 128  # measurements that alignments are compiled for
_MOST = 2**16  # measurements used, evenly spread
_COLUMNS = ("x", "y", "depth")
_HINT = "give columns x,y,depth: pixels of the upright photo, and depth in meters"


@dataclass(frozen=True)
class Measured:
    """Depth that is known at pixels of a photograph: rows and columns i64 [n], depth f32 [n]."""

    rows: np.ndarray
    columns: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class Scaling:
    """metric depth = scale * depth + shift, from `count` measurements.

    error: the mean of |aligned - measured| / measured over them.
    """

    scale: float
    shift: float
    count: int
    error: float


@dataclass(frozen=True)
class ScaleSource:
    """Measurements of photographs: one file, or a folder with a file of each photograph's name.

    A file is a depth map, or a table (.csv) with columns x, y and depth. A table with a column
    `file` holds those of several photographs.
    """

    path: Path
    form: DepthFormat

    def measured(self, photo: Path, name: str, size: Size) -> Measured:
        """Returns what is known of a photograph of (h, w) `size`; name: of its outputs.

        Raises UserError if there is nothing, or it does not fit.
        """
        path = self._find(photo, name) if is_dir(self.path) else self.path
        if path.suffix.lower() == ".csv":
            return read_points(path, size, photo.name)
        depth, valid = read_depth(path, self.form)
        return from_map(depth, valid, size, path)

    def _find(self, photo: Path, name: str) -> Path:
        tried = [
            self.path / f"{stem}{suffix}"
            for stem in dict.fromkeys((name, photo.stem))
            for suffix in (".csv", *DEPTH_SUFFIXES)
        ]
        found = next((path for path in tried if is_file(path)), None)
        if found is None:
            what = f"no measurements of it in {self.path}"
            hint = f"add {photo.stem}.csv, .npy, .exr or a 16-bit .png there"
            raise UserError(what, where=photo, hint=hint)
        return found


def read_points(path: Path, size: Size, photo: str = "") -> Measured:
    """Returns the rows of a table with columns x, y, depth, and maybe file.

    (0, 0) is the center of the upper left pixel of an upright photograph of (h, w) `size`. photo:
    its file name, whose rows are taken if there is a column `file`.

    Raises UserError for another table, a point outside, and depth that is not positive.
    """
    text = read_text(require_file(path, _HINT), _HINT)
    try:
        rows = parse_csv(text)
        if not rows or not all(name in rows[0][1] for name in _COLUMNS):
            raise ValueError("has no rows" if not rows else "lacks a column x, y or depth")
        if "file" in rows[0][1]:
            key = name_key(photo)
            rows = [row for row in rows if name_key(row[1]["file"] or "") == key]
            if not rows:
                raise ValueError(f"has no row with file {photo}")
        points = np.array([_parse_point(line, cells, size) for line, cells in rows])
    except ValueError as error:
        raise UserError(str(error), where=path, hint=_HINT) from error
    x, y, depth = points.T
    return _thinned(Measured(np.rint(y).astype(int), np.rint(x).astype(int), depth))


def from_map(depth: np.ndarray, valid: np.ndarray, size: Size, path: Path) -> Measured:
    """Returns the valid pixels of a depth map as measurements of a photograph of (h, w) `size`.

    The map may have fewer or more pixels at the same aspect. Raises UserError for another aspect.
    """
    (h, w), (height, width) = depth.shape, size
    if abs(w * height / h - width) > 0.5 * (1 + width / height) + width / w:
        what = f"is {format_size(depth.shape)} pixels, the photo {format_size(size)}"
        raise UserError(what, where=path, hint="give depth of the whole photo, upright")
    rows, columns = np.nonzero(valid)
    z = depth[rows, columns]
    rows, columns = ((2 * rows + 1) * height // (2 * h)), ((2 * columns + 1) * width // (2 * w))
    return _thinned(Measured(rows, columns, z))


def align(result: Result, measured: Measured) -> tuple[Result, Scaling]:
    """Returns a result in the unit of measurements, and its scale and shift.

    Minimizes the sum of |scale * depth + shift - measured| / measured exactly; below `MIN_AFFINE`
    measurements, and where depth would fall as the measured one rises, the scale alone. Pixels that
    end at 0 or below are not valid.

    Raises UserError for a result without depth, and if no measurement is at a valid pixel.
    """
    if result.depth is None or result.valid is None:
        raise UserError("this result has no depth", hint="use a checkpoint that makes depth")
    used = result.valid[measured.rows, measured.columns]
    pred = result.depth[measured.rows, measured.columns][used].astype(np.float32)
    target = measured.depth[used].astype(np.float32)
    if not len(pred):
        hint = "measure pixels that the fit keeps, or choose --fit letterbox"
        raise UserError("no measurement is at a pixel of known depth", hint=hint)
    scale, shift = _fit(pred, target)
    aligned = (scale * result.depth.astype(np.float64) + shift).astype(np.float32)
    valid = result.valid & (aligned > 0)
    sigma = result.uncertainty
    error = float(np.mean(np.abs(scale * pred.astype(np.float64) + shift - target) / target))
    moved = replace(
        result,
        depth=np.where(valid, aligned, np.float32(0)),
        valid=valid,
        uncertainty=None if sigma is None else sigma * np.float32(scale),
    )
    return moved, Scaling(scale, shift, len(pred), error)


def _fit(pred: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    # Few sizes, so that few programs are compiled.
    count = max(_LEAST, 1 << (len(pred) - 1).bit_length())
    padding = (0, count - len(pred))
    # Of weight 0, what is added has no influence.
    p, g, weight = (jnp.asarray(np.pad(x, padding)[None]) for x in (pred, target, 1 / target))

    def parameters(alignment: Alignment) -> tuple[float, float]:
        return float(alignment.scale[0]), float(alignment.shift[0])

    if len(pred) >= MIN_AFFINE:
        scale, shift = parameters(_ALIGN_AFFINE(p, g, weight))
        if scale > 0:
            return scale, shift
    if len(pred) == 1:  # alignments of benchmarks need two
        return float(target[0] / pred[0]), 0.0
    return parameters(_ALIGN_SCALE(p, g, weight))


def _thinned(measured: Measured) -> Measured:
    if (count := len(measured.depth)) <= _MOST:
        return measured
    kept = np.linspace(0, count - 1, _MOST).astype(int)
    return Measured(measured.rows[kept], measured.columns[kept], measured.depth[kept])


def _parse_point(line: int, cells: Mapping[str, str | None], size: Size) -> list[float]:
    try:
        x, y, depth = (float(cells[name] or "") for name in _COLUMNS)
    except ValueError:
        raise ValueError(f"line {line}: x, y and depth are not all numbers") from None
    if not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5):
        raise ValueError(f"line {line}: ({x:g}, {y:g}) is outside of {format_size(size)} pixels")
    if not 0 < depth < np.inf:
        raise ValueError(f"line {line}: depth {depth:g} is not positive")
    return [x, y, depth]
