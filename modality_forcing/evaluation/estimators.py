"""Depth estimators from outside: a judge of generated pictures that is not the model itself.

An estimator's depth is laid over the model's by scale and shift, like any prediction under protocol moge. So it may have
any unit and any offset, but must be depth: disparity, also up to scale and shift, would be judged as something it is not.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from modality_forcing.data.files import DECODE_ERRORS, MODES_16_BIT, read_depth, read_image
from modality_forcing.data.resize import Window, crop_resize_depth
from modality_forcing.errors import UserError

AT_ONCE = 32  # pictures of one call of somebody's function, whose memory is not known here
_ROUNDING = 1.0  # mean difference in codes of 255 up to which two pictures are one, made on other devices: bfloat16 moves by 0.3


@runtime_checkable
class Estimator(Protocol):
    """Depth of pictures, by whatever means."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def version(self, names: Sequence[str]) -> str:
        """What its depth of pictures of these names depends on, besides the pictures; UserError where it will have none."""
        ...

    def __call__(self, pictures: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Depth f32 [n h w], up to scale and shift, and where it is known bool [n h w], of pictures u8 [n h w 3]."""
        ...


def parse(text: str) -> Estimator | None:
    """Reads what a person names: a folder of maps, `module:function`, or `self`, which is None: the model's own i2d."""
    if text == "self":
        return None
    if text and Path(text).is_dir():  # "" would be the current folder
        return from_folder(text)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        return from_callable(text)
    hint = "give self, a folder of maps, or package.module:function"
    raise UserError(f"estimator {text!r} is neither a folder nor a function", hint=hint)


def from_folder(path: str | Path) -> Estimator:
    """Returns an estimator that reads maps made elsewhere: of picture `name`, `name.npy` or else a 16-bit `name.png`.

    0, NaN and inf mean unknown. A map may be of another size with the picture's aspect; it is then read at the pixel under
    each cell's centre (`crop_resize_depth`) and never interpolated. Where `name.png` is a picture, it must be the one judged:
    maps of the pictures of another checkpoint are refused. Raises UserError if there is no such folder.
    """
    if not Path(path).is_dir():
        raise UserError("no such folder", where=path, hint="check --estimator")
    return _Folder(Path(path))


def from_callable(text: str) -> Estimator:
    """Imports `package.module:function`, from the current folder too: pictures u8 [n h w 3] to depth [n h w], at most 32.

    Its depth is read as that of a file is: 0, NaN and inf mean unknown, and its maps may have another size.
    Raises UserError if it cannot be imported or is no function.
    """
    module, _, path = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(
            os.getcwd()
        )  # an installed command does not have it; last, so that it hides nothing
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the file does when it is imported
        hint = "check its name, and run where it can be imported"
        raise UserError(f"cannot be imported ({_told(error)})", where=module, hint=hint) from error
    source = getattr(found, "__file__", None)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(
            f"has no function {path}",
            where=module,
            hint="name one that takes pictures u8 [n h w 3]",
        )
    return _Function(text, found, source)


class _Folder:
    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def version(self, names: Sequence[str]) -> str:
        maps = {name: self._map(name) for name in names}
        missing = [name for name, path in maps.items() if path is None]
        if missing:
            told = f"{len(missing)} of {len(maps)} maps are missing, the first is {missing[0]}.npy (or .png of 16 bits)"
            raise UserError(
                told,
                where=self.path,
                hint="write the pictures with --pictures, and a map for each under its name",
            )
        stats = [
            (name, path.suffix, path.stat()) for name, path in maps.items() if path is not None
        ]
        told = [f"{name}{suffix} {stat.st_size} {stat.st_mtime_ns}" for name, suffix, stat in stats]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]

    def __call__(self, pictures: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self.version(names)
        return _stacked(
            [self._one(picture, name) for picture, name in zip(pictures, names, strict=True)]
        )

    def _one(self, picture: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        beside = self.path / f"{name}.png"
        if beside.is_file() and _is_picture(beside):
            theirs = read_image(beside)
            apart = (
                np.inf
                if theirs.shape != picture.shape
                else np.abs(theirs.astype(np.float32) - picture).mean()
            )
            if apart > _ROUNDING:
                hint = "write the pictures again with --pictures, and their maps"
                raise UserError(
                    "is not the picture that this checkpoint makes now", where=beside, hint=hint
                )
        path = self._map(name)
        assert path is not None
        depth, known = read_depth(path, scale=1.0)  # whatever the unit, it is aligned
        return _placed(depth, known, picture, path)

    def _map(self, name: str) -> Path | None:
        array, coded = self.path / f"{name}.npy", self.path / f"{name}.png"
        if array.is_file():
            return array
        return coded if coded.is_file() and not _is_picture(coded) else None


class _Function:
    def __init__(self, name: str, function: Callable[[np.ndarray], Any], source: str | None):
        self.name, self._function, self._source = name, function, source

    def version(self, names: Sequence[str]) -> str:
        source = Path(self._source) if self._source else None
        return (
            hashlib.sha256(source.read_bytes()).hexdigest()[:16]
            if source and source.is_file()
            else ""
        )

    def __call__(self, pictures: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        maps = []
        for start in range(0, len(pictures), AT_ONCE):
            part = pictures[start : start + AT_ONCE]
            maps += [self._read(z, x) for z, x in zip(self._answer(part), part, strict=True)]
        return _stacked(maps)

    def _answer(self, pictures: np.ndarray) -> np.ndarray:
        try:
            depth = np.asarray(self._function(pictures.copy()))  # its own: it may write into them
        except (
            Exception
        ) as error:  # somebody's code, and their line of it is what they need to know
            frame = traceback.extract_tb(error.__traceback__)[-1]
            told = f"failed ({_told(error)}, {Path(frame.filename).name}:{frame.lineno})"
            raise UserError(
                told, where=self.name, hint="hint it, or name another estimator"
            ) from error
        if depth.ndim != 3 or len(depth) != len(pictures) or depth.dtype.kind not in "fiu":
            told = f"returned {depth.dtype} {depth.shape} for pictures {pictures.shape}, not depth [n h w]"
            raise UserError(told, where=self.name, hint="return one map of numbers per picture")
        return depth

    def _read(self, depth: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if np.any(depth < 0):
            told = f"depth holds negative values (down to {np.nanmin(depth):g})"
            raise UserError(
                told, where=self.name, hint="return depth, and 0 or NaN where it is unknown"
            )
        with np.errstate(over="ignore"):
            depth = depth.astype(np.float32)
        known = np.isfinite(depth) & (depth > 0)
        if not known.any():
            raise UserError(
                "a map holds no valid depth (all is 0, NaN or inf)",
                where=self.name,
                hint="return depth above 0",
            )
        return _placed(np.where(known, depth, np.float32(0)), known, picture, self.name)


def _placed(
    depth: np.ndarray, known: np.ndarray, picture: np.ndarray, where: object
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and known [h w] on the raster of a square picture [h w 3]."""
    resolution, (height, width) = len(picture), depth.shape
    if (height, width) == picture.shape[:2]:
        return depth, known
    if height != width:  # pictures are square
        told = f"is a map of {height} x {width} pixels for a picture of {resolution} x {resolution}"
        raise UserError(told, where=where, hint="give depth of the whole picture in its aspect")
    return crop_resize_depth(depth, known, Window(0, 0, height, width), resolution)


def _is_picture(path: Path) -> bool:
    """Whether a PNG is a picture to look at and no map of counts; of a damaged one, reading it will tell."""
    try:
        with Image.open(path) as opened:
            return opened.mode not in MODES_16_BIT
    except (OSError, *DECODE_ERRORS):
        return False


def _stacked(maps: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    depth, known = zip(*maps, strict=True)
    return np.stack(depth), np.stack(known)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
