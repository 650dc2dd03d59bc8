"""What readers of data sets share: lists of frames read when asked for, listings of folders, and changes of raster."""

from __future__ import annotations

import csv
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from modality_forcing.data.records import Record, Unit
from modality_forcing.datasets.common.formats import read_text
from modality_forcing.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class LazySource(Generic[T]):
    """A source of records: `items` are what the set's listing found, small and picklable; `read` makes a record of one."""

    items: tuple[T, ...]
    read: Callable[[T], Record]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        return self.read(self.items[index])


@dataclass(frozen=True)
class DatasetInfo:
    """Where records come from: the set's name, the unit of its depth, and the folder that their ids are relative to."""

    name: str
    unit: Unit
    root: Path


def make_record(
    info: DatasetInfo,
    path: Path,
    image: np.ndarray,
    depth: np.ndarray,
    valid: np.ndarray | None = None,
    intrinsics: np.ndarray | None = None,
) -> Record:
    """Returns the record of a picture u8 [h w 3] and its depth [h w] of any floats, whose id is `path` without its suffix.

    path: a file of the frame, below the info's root, by which it is named in errors. valid: bool [h w] where depth is
    meant, everywhere if None; whatever is not finite and positive is unknown in any case. intrinsics: None if not known.
    Raises UserError if sizes differ, if nothing is valid, or for intrinsics that are not those of a camera.
    """
    if image.shape[:2] != depth.shape or (valid is not None and valid.shape != depth.shape):
        (height, width), (rows, columns) = image.shape[:2], depth.shape
        what = f"its picture is {width} x {height} pixels and its depth {columns} x {rows}"
        raise UserError(
            what, where=path, hint="both must come from the same download: unpack it again"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        depth = depth.astype(np.float32, copy=False)
    known = (depth > 0) & (depth < np.inf)  # NaN is neither
    if valid is not None:
        known &= valid
    count = np.count_nonzero(known)
    if not count:
        raise UserError("no pixel of its depth is known", where=path, hint="leave the frame out")
    matrix = np.full((3, 3), np.nan) if intrinsics is None else intrinsics
    if intrinsics is not None and not (
        np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
    ):
        raise UserError(
            "its intrinsics are not those of a camera", where=path, hint="leave the frame out"
        )
    if (
        np.count_nonzero(depth.view(np.uint32)) != count
    ):  # points come in a raster of zeros, and looking is quicker than copying
        depth = np.where(known, depth, np.float32(0))
    return Record(
        image=np.ascontiguousarray(image),
        depth=depth,
        valid=known,
        intrinsics=matrix.astype(np.float32),
        unit=info.unit,
        caption="",
        source=info.name,
        id=path.relative_to(info.root).with_suffix("").as_posix(),
    )


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Returns f64 [3 3] intrinsics in pixels, the centre of the first pixel at (0, 0)."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def glob_paths(folder: Path, pattern: str) -> list[Path]:
    """Returns what matches a glob pattern below a folder, by name, without hidden files (macOS's "._" twins) and folders."""
    try:
        return sorted(
            path
            for path in folder.glob(pattern)
            if not any(part.startswith(".") for part in parts_below(path, folder))
        )
    except OSError as error:
        raise UserError(
            f"cannot be listed ({error.strerror})", where=folder, hint="check its permissions"
        ) from error


def parts_below(path: Path, folder: Path) -> tuple[str, ...]:
    """Returns the parts of a path that come after those of a folder above it."""
    return path.parts[len(folder.parts) :]


def require_dir(root: Path | str, title: str) -> Path:
    """Returns the root of a set as a path; raises UserError if it is no folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            "no such folder", where=root, hint=f"give the folder that {title} was unpacked into"
        )
    return root


def require_nonempty(items: Iterable[T], root: Path, title: str, layout: str) -> tuple[T, ...]:
    """Returns the items; raises UserError, telling the layout that was looked for, if there are none."""
    kept = tuple(items)
    if not kept:
        raise UserError(f"holds no frame of {title}", where=root, hint=f"its layout is {layout}")
    return kept


def read_split_list(root: Path, places: Iterable[str], title: str, source: str) -> list[str]:
    """Returns the lines of the first file of a list of `places` below the root that exists; empty lines are passed over.

    Raises UserError, saying where the list comes from, if there is none or it names nothing.
    """
    places = list(places)
    path = next((root / place for place in places if (root / place).is_file()), None)
    if path is None:
        raise UserError(
            f"no {places[0]}, the list of this split of {title}",
            where=root,
            hint=f"put it there: {source}",
        )
    names = [line.strip() for line in read_text(path, "a list").splitlines() if line.strip()]
    if not names:
        raise UserError("names nothing", where=path, hint=f"download it again: {source}")
    return names


def read_csv(path: Path, columns: Iterable[str], source: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file with a heading; raises UserError if it is missing, damaged, or lacks a column."""
    if not path.is_file():
        raise UserError("no such file", where=path, hint=f"put it there: {source}")
    rows = list(csv.DictReader(read_text(path, "a table").splitlines()))
    missing = [column for column in columns if not rows or rows[0].get(column) is None]
    if missing:
        raise UserError(
            f"has no column {missing[0]}, or no rows",
            where=path,
            hint=f"download it again: {source}",
        )
    short = next(
        (
            number
            for number, row in enumerate(rows, 2)
            if any(row[column] is None for column in columns)
        ),
        None,
    )
    if short:
        raise UserError(
            f"line {short} is cut short", where=path, hint=f"download it again: {source}"
        )
    return rows


def nearest_in_time(
    ours: Sequence[float], theirs: Sequence[float], apart: float
) -> list[tuple[int, int]]:
    """Returns the pairs of indices of two ascending lists of times that lie at most `apart` seconds from each other.

    The closest pair comes first and each index once; pairs are in the order of `ours`.
    """
    near = [
        (abs(time - theirs[j]), i, j)
        for i, time in enumerate(ours)
        for j in range(bisect_left(theirs, time - apart), bisect_right(theirs, time + apart))
    ]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(near):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return sorted(pairs.items())


def upsample_sparse(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns depth f32 [h w] of a coarse map in a finer raster of the same view: each value once, 0 between them.

    A value lies at the pixel under the centre of its own, so that nothing is invented between two measurements.
    Raises ValueError if a side of the raster is shorter than that of the map.
    """
    if size[0] < depth.shape[0] or size[1] < depth.shape[1]:
        raise ValueError(f"a map of {depth.shape} in a raster of {size}")
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(np.int64)
        for n, m in zip(depth.shape, size, strict=True)
    )
    finer = np.zeros(size, np.float32)
    finer[np.ix_(rows, columns)] = depth
    return finer


def rot90(
    image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, quarters: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns picture, depth and intrinsics turned by quarters of a circle, counterclockwise as np.rot90 does."""
    for _ in range(quarters % 4):
        width = depth.shape[1]
        image, depth = np.rot90(image), np.rot90(depth)
        # The new column is the old row, the new row counts the old columns from the right.
        (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
        intrinsics = pinhole(fy, fx, cy, width - 1 - cx)
    return image, depth, intrinsics
