"""What the readers share: lazily read sources, records, listings of folders, changes of raster."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from modality_forcing import paths
from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.names import printable_name
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import format_size
from modality_forcing.datasets.common.camera_option import CameraOption
from modality_forcing.datasets.common.formats import read_lines, read_text
from modality_forcing.errors import UserError
from modality_forcing.text_io import parse_csv

T = TypeVar("T")


@dataclass(frozen=True)
class LazySource(Generic[T]):
    """A source of records.

    items: small, picklable descriptions of the frames, as listed. read: makes a record of one item.
    unused: a line for each kind of thing that is left out.
    """

    items: tuple[T, ...]
    read: Callable[[T], Record]
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        return self.read(self.items[index])

    def notes(self) -> list[str]:
        """Returns a line for each kind of thing that is left out."""
        return list(self.unused)


@dataclass(frozen=True)
class DatasetInfo:
    """Name of a data set, unit of its depth, and the root that record ids are relative to.

    camera: of all images, if the user states one (`vga_intrinsics`).
    """

    name: str
    unit: Unit
    root: Path
    camera: CameraOption | None = None


def make_record(
    info: DatasetInfo,
    path: Path,
    image: np.ndarray,
    depth: np.ndarray,
    *,
    valid: np.ndarray | None = None,
    intrinsics: np.ndarray | None = None,
) -> Record:
    """Returns the record of an image u8 [h w 3] and its depth [h w] in any float type.

    path: a file of the frame below `info.root`. The id is this path without its suffix, with
    escapes for bytes that are not UTF-8, and errors name it. valid: bool [h w], everywhere True if
    None. Depth that is not finite and positive is invalid in any case. intrinsics: [3 3], None if
    unknown.
    Raises UserError for unequal sizes, for no valid pixel and for impossible intrinsics.
    """
    if image.shape[:2] != depth.shape or (valid is not None and valid.shape != depth.shape):
        sizes = f"{format_size(image.shape)} pixels and its depth {format_size(depth.shape)}"
        hint = "both must come from the same download: unpack it again"
        raise UserError(f"its image is {sizes}", where=path, hint=hint)
    with np.errstate(over="ignore", invalid="ignore"):
        depth = depth.astype(np.float32, copy=False)
    known = (depth > 0) & (depth < np.inf)  # False for NaN
    if valid is not None:
        known &= valid
    count = np.count_nonzero(known)
    if not count:
        raise UserError("its depth has no valid pixel", where=path, hint="leave the frame out")
    matrix = np.full((3, 3), np.nan) if intrinsics is None else intrinsics
    if intrinsics is not None and not (
        np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
    ):
        what = "its intrinsics are not those of a camera"
        raise UserError(what, where=path, hint="leave the frame out")
    # Projected points come in a raster of zeros, and checking for that is faster than copying.
    if np.count_nonzero(depth.view(np.uint32)) != count:
        depth = np.where(known, depth, np.float32(0))
    return Record(
        image=np.ascontiguousarray(image),
        depth=depth,
        valid=known,
        intrinsics=matrix.astype(np.float32),
        unit=info.unit,
        caption="",
        source=info.name,
        id=printable_name(path.relative_to(info.root).with_suffix("").as_posix()),
    )


def image_record(image: np.ndarray, captions: Sequence[str], *, source: str, id: str) -> Record:
    """Returns the record of an image u8 [h w 3] without depth; captions: its own, if any."""
    return Record(
        image=image,
        depth=np.zeros(image.shape[:2], np.float32),
        valid=np.zeros(image.shape[:2], np.bool_),
        intrinsics=np.full((3, 3), np.nan, np.float32),
        unit="relative",
        caption=captions[0] if captions else "",
        source=source,
        id=id,
        other_captions=tuple(captions[1:]),
    )


def glob_paths(folder: Path, pattern: str, *, max_depth: int = 0) -> list[Path]:
    """Returns the sorted matches of a glob pattern, without hidden files (macOS writes "._" twins).

    `**` matches folders behind links too, each folder once. max_depth: the pattern is also looked
    for in folders up to so many levels below, which come behind, level by level. Raises UserError
    for a folder that cannot be listed, whose files would be missed otherwise.
    """
    if pattern.startswith("**/"):
        below = pattern.removeprefix("**/")
        return sorted(path for each in _folders_below(folder) for path in _match(each, below))
    levels = ("*/" * depth + pattern for depth in range(max_depth + 1))
    return [path for level in levels for path in sorted(_match(folder, level))]


def _match(folder: Path, pattern: str) -> list[Path]:
    found = [folder]
    for part in pattern.split("/"):
        if not has_magic(part):
            found = [path for parent in found if paths.exists(path := parent / part)]
            continue
        found = [
            path
            for parent in found
            if paths.is_dir(parent)
            for path in paths.list_dir(parent)
            if fnmatchcase(path.name, part) and not path.name.startswith(".")
        ]
    return found


def _folders_below(folder: Path) -> Iterator[Path]:
    """Yields a folder and those below it; those behind links follow all others."""
    seen: set[Path] = set()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        if not paths.is_dir(folder) or (real := paths.resolve(folder)) in seen:
            continue
        seen.add(real)
        yield folder
        for path in _match(folder, "*"):
            (links if path.is_symlink() else folders).append(path)


def first_file(candidates: Iterable[Path]) -> Path | None:
    """Returns the first of the paths that `is_there`, or None."""
    return next((path for path in candidates if is_there(path)), None)


def is_there(path: Path) -> bool:
    """Returns whether a path is a file, or a dangling link, which reading it then reports."""
    return paths.is_file(path) or path.is_symlink()


def require_dir(root: Path | str, title: str) -> Path:
    """Returns the root of a data set as a path. Raises UserError if it is not a folder."""
    return paths.require_dir(root, f"give the folder that {title} was unpacked into")


def read_split_list(root: Path, candidates: Sequence[str], title: str, source: str) -> list[str]:
    """Returns the nonempty lines of the first of several candidate files below the root.

    source: where the list can be downloaded.
    Raises UserError if no file exists or it has no lines.
    """
    path = first_file(root / candidate for candidate in candidates)
    if path is None:
        what = f"no {candidates[0]}, the list of this split of {title}"
        raise UserError(what, where=root, hint=f"put it there: {source}")
    names = [line.strip() for line in read_lines(path) if line.strip()]
    if not names:
        raise UserError("names nothing", where=path, hint=f"download it again: {source}")
    return names


def read_csv(path: Path, columns: Sequence[str], source: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file with a header.

    source: where the file can be downloaded.
    Raises UserError if the file is missing or damaged or lacks one of `columns`.
    """
    paths.require_file(path, f"put it there: {source}")
    again = f"download it again: {source}"
    try:
        rows = parse_csv(read_text(path))
    except ValueError as error:
        raise UserError(f"is not a table: {error}", where=path, hint=again) from error
    for column in columns:
        if not rows or column not in rows[0][1]:
            raise UserError(f"has no column {column}, or no rows", where=path, hint=again)
    for number, row in rows:
        if any(row[column] is None for column in columns):
            raise UserError(f"line {number} is cut short", where=path, hint=again)
    return [{name: cell or "" for name, cell in row.items()} for _, row in rows]


def nearest_in_time(
    times: Sequence[float], others: Sequence[float], max_gap: float
) -> list[tuple[int, int]]:
    """Returns index pairs of two ascending lists of times that are at most `max_gap` apart.

    The closest pair is taken first, and each index once. The pairs are in the order of `times`.
    """
    near = [
        (abs(time - others[j]), i, j)
        for i, time in enumerate(times)
        for j in range(bisect_left(others, time - max_gap), bisect_right(others, time + max_gap))
    ]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(near):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return sorted(pairs.items())


def upsample_sparse(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns depth [h w] in a finer raster of the same view, f32: each value once, 0 elsewhere.

    A value goes to the pixel under its own center, so that no depth is invented between two
    measurements. Raises ValueError if the raster is smaller than the map.
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
    image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, turns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image, depth and intrinsics after quarter turns, counterclockwise as in np.rot90."""
    for _ in range(turns % 4):
        width = depth.shape[1]
        image, depth = np.rot90(image), np.rot90(depth)
        # The new column is the old row. The new row counts the old columns from the right.
        (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
        intrinsics = pinhole(fy, fx, cy, width - 1 - cx)
    return image, depth, intrinsics
