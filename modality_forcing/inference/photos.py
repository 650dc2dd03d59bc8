"""Finds photographs and depth maps by file, folder or pattern, and reads photographs.

Memory: one photograph has at most 178,956,970 pixels, above which Pillow refuses it, and takes 3
bytes of memory a pixel.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from modality_forcing import buckets, paths
from modality_forcing.buckets import BucketPath
from modality_forcing.data.files import (
    DECODE_ERRORS,
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    open_image,
    upright_rgb,
)
from modality_forcing.data.listing import files_below, is_folder, may_be_file
from modality_forcing.data.names import name_key
from modality_forcing.errors import UserError

PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff", ".bmp", ".gif", ".avif", *HEIF_SUFFIXES)
_PATTERN = re.compile(r"[*?[]")
_FILM_DIAGONAL = 43.2666  # millimeters of a frame of 36 x 24


@dataclass(frozen=True)
class Item:
    """A file to work on. name: of its outputs, with the folders below the one that was named."""

    path: Path
    name: str


@dataclass(frozen=True)
class Photo:
    """A photograph u8 [h w 3], upright, and its field of view across the longer side in degrees."""

    image: np.ndarray
    fov: float | None = None


def find_items(
    named: Sequence[Path], suffixes: tuple[str, ...], option: str, skip: Path | None = None
) -> list[Item]:
    """Returns the files that paths name, each once, in the order of their names.

    A folder stands for all files of a known suffix in it and below, hidden ones apart; links are
    followed, and what two paths lead to is taken once. A pattern has *, ? or [ ], and ** for any
    folders. A file is taken whatever its suffix.

    Args:
      named: folders, patterns and files.
      suffixes: of the files that are looked for.
      option: the name of the option, for errors.
      skip: a folder that is left out: outputs of an earlier run are no inputs.

    Raises UserError for a path that names nothing.
    """
    left_out = None if skip is None else paths.resolve(skip)
    seen = set() if left_out is None else {left_out}
    found: dict[Path, tuple[Path, Path]] = {}  # by target; with the part of its path outputs keep
    for path in named:
        matches: Iterator[tuple[Path, Path]]
        if paths.is_dir(path):
            matches = files_below(path, suffixes, seen)
        elif _PATTERN.search(str(path)) and not paths.exists(path):
            matches = _expand(path, suffixes, seen)
        else:
            paths.require_file(path, f"check {option}")
            matches = iter([(path, Path(path.name))])
        names_any = paths.is_file(path)
        for file, below in matches:
            names_any, target = True, paths.resolve(file)
            # Of a file and links to it, the file gives the name.
            if target not in found or (found[target][0].is_symlink() and not file.is_symlink()):
                found[target] = file, below
        if not names_any:
            if paths.resolve(path) == left_out:
                hint = "choose another folder for results"
                raise UserError("is also --out; results are not inputs", where=path, hint=hint)
            known = " ".join(suffixes)
            raise UserError("no file to work on", where=path, hint=f"known kinds are {known}")
    return _name_outputs([*found.values()])


def read_photo(path: Path) -> Photo:
    """Returns a photograph; raises UserError as `data.files.read_image` does."""
    with open_image(path, "image") as opened:
        image = upright_rgb(opened, path)
        return Photo(image, _field_of_view(opened))


def file_version(path: Path) -> str:
    """Returns what changes with the content of a file: size and time of change; "" if unknown."""
    with suppress(OSError, UserError):
        if isinstance(path, BucketPath):
            return buckets.version(path)
        with paths.open_file(path) as opened:
            status = os.fstat(opened.fileno())
            return f"{status.st_size}-{status.st_mtime_ns}"
    return ""


def _expand(
    pattern: Path, suffixes: tuple[str, ...], seen: set[Path]
) -> Iterator[tuple[Path, Path]]:
    """Yields the files that match a pattern, with their paths below its first part with one."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if _PATTERN.search(part))
    root = paths.as_path(str(pattern.parents[len(parts) - 1 - first]))

    def match(folder: Path, rest: Sequence[str]) -> Iterator[Path]:
        name, *after = rest
        if name == "**":
            yield from match(folder, after or ["*"])
            below = [p for p in paths.list_dir(folder) if not p.name.startswith(".")]
            for path in below:
                if is_folder(path) and paths.resolve(path) not in seen:
                    yield from match(path, rest)
            return
        for path in paths.glob(folder, name):
            hidden = path.name.startswith(".") and not name.startswith(".")
            if hidden or paths.resolve(path) in seen:
                continue
            if after and is_folder(path):
                yield from match(path, after)
            elif not after and may_be_file(path, suffixes):
                yield path

    for path in match(root, parts[first:]):
        yield path, Path(*path.parts[len(root.parts) :])


def _name_outputs(found: Sequence[tuple[Path, Path]]) -> list[Item]:
    """Returns the files with names of outputs that differ: without the suffix where possible."""
    counts: dict[str, int] = {}
    for _, below in found:
        key = _key(below.with_suffix(""))
        counts[key] = counts.get(key, 0) + 1
    taken: set[str] = set()
    items = []
    for path, below in found:
        plain = below.with_suffix("")
        name = plain.as_posix()
        if counts[_key(plain)] > 1:  # photo.jpg beside photo.png
            name += "_" + below.suffix.removeprefix(".")
        chosen, number = name, 2
        while _key(Path(chosen)) in taken:
            chosen, number = f"{name}_{number}", number + 1
        taken.add(_key(Path(chosen)))
        items.append(Item(path, chosen))
    return items


def _key(path: Path) -> str:
    return name_key(path.as_posix()).casefold()  # some file systems ignore case


def _field_of_view(image: Image.Image) -> float | None:
    """Returns the field of view from the EXIF focal length for 35 mm film, if there is one.

    That focal length is for the same angle across the diagonal (CIPA DCG-001).
    """
    with suppress(OSError, AttributeError, *DECODE_ERRORS):
        tags = image.getexif().get_ifd(ExifTags.IFD.Exif)
        focal = float(tags[ExifTags.Base.FocalLengthIn35mmFilm])
        if math.isfinite(focal) and focal > 0:
            longer = _FILM_DIAGONAL * max(image.size) / math.hypot(*image.size)
            return math.degrees(2 * math.atan(longer / 2 / focal))
    return None
