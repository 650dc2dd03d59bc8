"""External depth estimators: judges of generated images other than the model itself.

An estimator's depth is aligned to the model's by scale and shift, as under protocol moge, so it may
have any unit and offset. It must be depth: disparity would be scored as something it is not.
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
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from modality_forcing.data.files import (
    DECODE_ERRORS,
    MODES_16_BIT,
    DepthFormat,
    read_depth,
    read_image,
)
from modality_forcing.data.resize import Window, crop_resize_depth
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path, is_dir, is_file, require_disk

BATCH_SIZE = 32  # images per call of a user's function, whose memory use is unknown
# Mean difference in u8 codes up to which two images count as equal. The same weights on another
# device move bfloat16 results by 0.3.
_TOLERANCE = 1.0

DepthMap = tuple[np.ndarray, np.ndarray]  # depth f32 [... h w] and valid bool [... h w]


@runtime_checkable
class Estimator(Protocol):
    """Estimates the depth of images."""

    @property
    def name(self) -> str:
        """The name in results."""
        ...

    def fingerprint(self, names: Sequence[str]) -> str:
        """Returns what the depth of these images depends on, besides the images.

        Raises UserError if there will be no depth for one of them.
        """
        ...

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> DepthMap:
        """Returns depth f32, up to scale and shift, and valid bool [n h w] of images [n h w 3]."""
        ...


def parse_estimator(text: str) -> Estimator | None:
    """Parses `self` (None: the model's own i2d), a folder of maps, or `module:function`."""
    if text == "self":
        return None
    if text and is_dir(as_path(text)):  # "" would be the current folder
        return from_folder(text)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        return from_callable(text)
    hint = "give self, a folder of maps, or package.module:function"
    raise UserError(f"estimator {text!r} is neither a folder nor a function", hint=hint)


def from_folder(path: str | Path) -> Estimator:
    """Returns an estimator that reads `name.npy`, `name.exr` or a 16-bit `name.png` of an image.

    0, NaN and inf mean invalid. A map may have another size with the image's aspect ratio; it is
    sampled at cell centers (`crop_resize_depth`) and never interpolated. If `name.png` is an image,
    it must equal the judged one: maps of another checkpoint's images are refused. Raises UserError
    if there is no such folder.
    """
    folder = require_disk(as_path(path), "maps of depth")
    if not is_dir(folder):
        raise UserError("no such folder", where=path, hint="check --estimator")
    return _FolderEstimator(folder)


def from_callable(text: str) -> Estimator:
    """Imports `package.module:function`, also from the current folder.

    The function maps at most `BATCH_SIZE` images u8 [n h w 3] to depth [n h w]. 0, NaN and inf mean
    invalid, and the maps may have another size. Raises UserError if it cannot be imported.
    """
    module, _, path = text.partition(":")
    if os.getcwd() not in sys.path:
        # Missing for an installed command; appended, so that it shadows nothing.
        sys.path.append(os.getcwd())
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the file does when it is imported
        what = f"cannot be imported ({_describe(error)})"
        hint = "check its name, and run where it can be imported"
        raise UserError(what, where=module, hint=hint) from error
    function: object = imported
    for part in path.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        hint = "name one that takes images u8 [n h w 3]"
        raise UserError(f"has no function {path}", where=module, hint=hint)
    return _FunctionEstimator(text, function, getattr(imported, "__file__", None))


class _FolderEstimator:
    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def fingerprint(self, names: Sequence[str]) -> str:
        lines, missing = [], []
        for name in names:
            path = self._map_path(name)
            if path is None:
                missing.append(name)
            else:
                stat = path.stat()
                lines.append(f"{name}{path.suffix} {stat.st_size} {stat.st_mtime_ns}")
        if missing:
            raise UserError(
                f"{len(missing)} of {len(names)} maps are missing, "
                f"the first is {missing[0]}.npy (or .exr, or .png of 16 bits)",
                where=self.path,
                hint="write the images with --save-images, and a map for each under its name",
            )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> DepthMap:
        self.fingerprint(names)
        return _stack([self._read(x, name) for x, name in zip(images, names, strict=True)])

    def _read(self, image: np.ndarray, name: str) -> DepthMap:
        beside = self.path / f"{name}.png"
        if is_file(beside) and _is_image(beside) and not _same_image(read_image(beside), image):
            hint = "write the images again with --save-images, and their maps"
            raise UserError("differs from this checkpoint's image", where=beside, hint=hint)
        path = self._map_path(name)
        assert path is not None
        depth, valid = read_depth(path, DepthFormat(scale=1.0))  # the unit cancels in the alignment
        return _resize(depth, valid, image, path)

    def _map_path(self, name: str) -> Path | None:
        for path in (self.path / f"{name}.npy", self.path / f"{name}.exr"):
            if is_file(path):
                return path
        coded = self.path / f"{name}.png"
        return coded if is_file(coded) and not _is_image(coded) else None


class _FunctionEstimator:
    def __init__(self, name: str, function: Callable[..., object], source: str | None):
        self.name, self._function, self._source = name, function, source

    def fingerprint(self, names: Sequence[str]) -> str:
        source = Path(self._source or "")
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16] if is_file(source) else ""

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> DepthMap:
        maps = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            depths = self._call(batch)
            maps += [self._check(z, x) for z, x in zip(depths, batch, strict=True)]
        return _stack(maps)

    def _call(self, images: np.ndarray) -> np.ndarray:
        try:
            depth = np.asarray(self._function(images.copy()))  # a copy: it may write into it
        except Exception as error:  # the user's code: report the failing line
            frame = traceback.extract_tb(error.__traceback__)[-1]
            line = f"{Path(frame.filename).name}:{frame.lineno}"
            what = f"failed ({_describe(error)}, {line})"
            raise UserError(what, where=self.name, hint="fix it, or name another one") from error
        if depth.ndim != 3 or len(depth) != len(images) or depth.dtype.kind not in "fiu":
            shapes = f"{depth.dtype} {depth.shape} for images {images.shape}"
            hint = "return one map of numbers per image"
            raise UserError(f"returned {shapes}, not depth [n h w]", where=self.name, hint=hint)
        return depth

    def _check(self, depth: np.ndarray, image: np.ndarray) -> DepthMap:
        if np.any(depth < 0):
            what = f"depth has negative values (down to {np.nanmin(depth):g})"
            raise UserError(what, where=self.name, hint="return depth, and 0 or NaN where invalid")
        with np.errstate(over="ignore"):
            depth = depth.astype(np.float32)
        valid = np.isfinite(depth) & (depth > 0)
        if not valid.any():
            what = "a map has no valid depth (all is 0, NaN or inf)"
            raise UserError(what, where=self.name, hint="return depth above 0")
        return _resize(np.where(valid, depth, np.float32(0)), valid, image, self.name)


def _resize(depth: np.ndarray, valid: np.ndarray, image: np.ndarray, where: str | Path) -> DepthMap:
    """Returns depth and valid [h w] at the size of a square image [h w 3]."""
    resolution, (height, width) = len(image), depth.shape
    if (height, width) == image.shape[:2]:
        return depth, valid
    if height != width:  # images are square
        what = f"has {height} x {width} pixels for an image of {resolution} x {resolution}"
        hint = "give depth of the whole image in its aspect ratio"
        raise UserError(what, where=where, hint=hint)
    return crop_resize_depth(depth, valid, Window(0, 0, height, width), resolution)


def _is_image(path: Path) -> bool:
    """Returns whether a PNG is an image and not a map of counts; read errors come later."""
    try:
        with Image.open(path) as opened:
            return opened.mode not in MODES_16_BIT
    except (OSError, *DECODE_ERRORS):
        return False


def _same_image(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.abs(one.astype(np.float32) - other).mean() <= _TOLERANCE)


def _stack(maps: list[DepthMap]) -> DepthMap:
    depth, valid = zip(*maps, strict=True)
    return np.stack(depth), np.stack(valid)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
