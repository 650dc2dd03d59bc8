"""Metric depth: scale and shift from measurements of some pixels, such as a few laser points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing import numpy_io
from modality_forcing.data.files import DEPTH_SUFFIXES, DepthFormat, holds_floats, read_depth
from modality_forcing.data.names import list_some, name_key
from modality_forcing.data.resize import Size, format_size
from modality_forcing.errors import UserError
from modality_forcing.evaluation.alignment import Alignment, align_affine_l1, align_scale_l1
from modality_forcing.inference.photos import file_version
from modality_forcing.inference.result import Result
from modality_forcing.paths import is_dir, is_file, read_text, require_file
from modality_forcing.text_io import check_unique, parse_csv

# With fewer measurements only the scale is fitted: two parameters follow the errors of a few.
MIN_AFFINE = 8
_ALIGN_AFFINE, _ALIGN_SCALE = jax.jit(align_affine_l1), jax.jit(align_scale_l1)
_LEAST = 128  # measurements that alignments are compiled for
_MOST = 2**16  # measurements used, evenly spread
_COLUMNS = ("x", "y", "depth")
_FILE = "file"  # a column that is not needed
_FAR_METERS = 500.0  # a median depth above it is rather one in millimeters
_LARGE_ERROR = 0.25
_HINT = "give columns x,y,depth: pixels of the upright photo, and depth in meters"


_Row = tuple[int, dict[str, str | None]]  # its line and its cells by column


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

    def describe(self) -> str:
        """Returns the fit in words."""
        sign = "-" if self.shift < 0 else "+"
        formula = f"meters = {self.scale:.3g} * depth {sign} {abs(self.shift):.3g}"
        return f"{formula}, measurements: {self.count}, mean relative error: {self.error:.1%}"


@dataclass(frozen=True)
class ScaleSource:
    """Measurements of photographs: one file, or a folder with a file of each photograph's name.

    A file is a depth map, or a table (.csv) with columns x, y and depth. A table with a column
    `file` holds those of several photographs.
    """

    path: Path
    form: DepthFormat

    def check(self, count: int) -> None:
        """Raises UserError if a file cannot serve `count` photographs, for lack of their names.

        Also for a table without rows or columns, and a map whose unit is not known.
        """
        if is_dir(self.path):
            return
        if _is_table(self.path):
            has_names = _FILE in _read_table(self.path)[0][1]
        else:
            has_names = False
            _check_unit(self.path, self.form)
            if self.form.scale is not None and holds_floats(self.path):
                what = "holds floats, which --depth-scale does not apply to"
                raise UserError(what, where=self.path, hint="leave it out")
        if count > 1 and not has_names:
            hint = "add a column file, or name a folder of maps"
            raise UserError(f"measures one photo, {count} are given", where=self.path, hint=hint)

    def measured(self, photo: Path, name: str, size: Size) -> Measured:
        """Returns what is known of a photograph of (h, w) `size`; name: of its outputs.

        Raises UserError if there is nothing, or it does not fit.
        """
        path = self._find(photo, name) if is_dir(self.path) else self.path
        if _is_table(path):
            return read_points(path, size, photo.name)
        _check_unit(path, self.form)
        depth, valid = read_depth(path, self.form)
        return from_map(depth, valid, size, path)

    def version(self, photo: Path, name: str) -> str:
        """Returns what changes with the measurements of one photograph in a folder, else ""."""
        found = self._first(photo, name) if is_dir(self.path) else None
        return "" if found is None else f"{found.name}-{file_version(found)}"

    def _first(self, photo: Path, name: str) -> Path | None:
        tried = [
            self.path / f"{stem}{suffix}"
            for stem in dict.fromkeys((name, photo.stem))
            for suffix in (".csv", *DEPTH_SUFFIXES)
        ]
        return next((path for path in tried if is_file(path)), None)

    def _find(self, photo: Path, name: str) -> Path:
        found = self._first(photo, name)
        if found is None:
            what = f"no measurements of it in {self.path}"
            hint = f"add {photo.stem}.csv, .npy, .exr or a 16-bit .png there"
            raise UserError(what, where=photo, hint=hint)
        return found


def read_points(path: Path, size: Size, photo: str = "") -> Measured:
    """Returns the rows of a table with columns x, y, depth, and maybe file.

    (0, 0) is the center of the upper left pixel of an upright photograph of (h, w) `size`. photo:
    its file name, whose rows are taken if there is a column `file`, else those of its stem. The
    case of column names is ignored.

    Raises UserError for another table, a point outside, and depth that is not positive.
    """
    rows = _read_table(path)
    if _FILE in rows[0][1]:
        rows = _rows_of(photo, rows, path)
    try:
        points = np.array([_parse_point(line, cells, size) for line, cells in rows])
    except ValueError as error:
        raise UserError(str(error), where=path, hint=_HINT) from error
    x, y, depth = points.T
    return _thinned(Measured(np.rint(y).astype(int), np.rint(x).astype(int), depth))


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _read_table(path: Path) -> list[_Row]:
    """Returns the rows of a table, at least one, by column names in lower case."""
    text = read_text(require_file(path, _HINT), _HINT)
    try:
        rows = parse_csv(text)
        if not rows:
            raise ValueError("has no rows")
        check_unique([name.lower() for name in rows[0][1] if name], "column")
        rows = [(line, {name.lower(): x for name, x in cells.items()}) for line, cells in rows]
        if not all(name in rows[0][1] for name in _COLUMNS):
            raise ValueError("lacks a column x, y or depth")
    except ValueError as error:
        raise UserError(str(error), where=path, hint=_HINT) from error
    return rows


def _rows_of(photo: str, rows: list[_Row], path: Path) -> list[_Row]:
    by_file: dict[str, list[_Row]] = {}
    for row in rows:
        by_file.setdefault(name_key(row[1][_FILE] or ""), []).append(row)
    for name in (photo, Path(photo).stem):
        if found := by_file.get(name_key(name)):
            return found
    what = f"has no row with file {photo}: the column holds {list_some(by_file)}"
    raise UserError(what, where=path, hint="name the photo there, with or without its suffix")


def _check_unit(path: Path, form: DepthFormat) -> None:
    """Raises UserError for a .npy of integers whose scale is not given; floats are meters."""
    if form.scale is None and path.suffix.lower() == ".npy":
        dtype = numpy_io.npy_dtype(path)
        if dtype is not None and dtype.kind in "iu":
            hint = "add --depth-scale, e.g. 0.001 for millimeters"
            raise UserError("the unit of its counts is not known", where=path, hint=hint)


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
    depth, valid = result.require_depth()
    used = valid[measured.rows, measured.columns]
    pred = depth[measured.rows, measured.columns][used].astype(np.float32)
    target = measured.depth[used].astype(np.float32)
    if not len(pred):
        hint = "measure pixels that the fit keeps, or choose --fit letterbox"
        raise UserError("no measurement is at a pixel of known depth", hint=hint)
    scale, shift = _fit(pred, target)
    aligned = (scale * depth.astype(np.float64) + shift).astype(np.float32)
    valid = valid & (aligned > 0)
    sigma = result.uncertainty
    error = float(np.mean(np.abs(scale * pred.astype(np.float64) + shift - target) / target))
    moved = replace(
        result,
        depth=np.where(valid, aligned, np.float32(0)),
        valid=valid,
        uncertainty=None if sigma is None else sigma * np.float32(scale),
    )
    return moved, Scaling(scale, shift, len(pred), error)


def doubts(result: Result, scaling: Scaling) -> list[str]:
    """Returns what makes a metric result doubtful, a line each: its unit, or a large error."""
    found = []
    if result.depth is not None and result.valid is not None and result.valid.any():
        median = float(np.median(result.depth[result.valid]))
        if median > _FAR_METERS:
            what = f"the measurements look like millimeters (median {median:.0f})"
            found.append(f"{what}; give meters")
    if scaling.error > _LARGE_ERROR:
        what = f"the mean relative error is {scaling.error:.0%}; check their pixels and unit"
        found.append(f"the measurements do not agree with the depth: {what}")
    return found


def describe_all(scalings: Mapping[str, Scaling], few: int) -> list[str]:
    """Returns a line for each photograph, by its name, or one line for more than `few`."""
    if len(scalings) <= few:
        return [f"{name}: {scaling.describe()}" for name, scaling in scalings.items()]
    scales, errors = zip(*((x.scale, x.error) for x in scalings.values()), strict=True)
    worst = max(scalings, key=lambda name: scalings[name].error)
    scale = f"scale {min(scales):.3g} to {max(scales):.3g}, median {np.median(scales):.3g}"
    error = f"mean relative error {np.mean(errors):.1%}, at most {max(errors):.1%} ({worst})"
    return [f"{len(scalings)} photos in meters: {scale}; {error}"]


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
