"""Reads image and depth files; errors name the file and suggest a fix."""

from __future__ import annotations

import importlib.util
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from modality_forcing import numpy_io
from modality_forcing.errors import UserError
from modality_forcing.exr_io import read_depth_channel
from modality_forcing.paths import as_path, is_address, read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
DEPTH_SUFFIXES = (".png", ".npy", ".exr")

# Pillow before 11.3 may open a 16-bit gray PNG as "I".
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What decoders raise on damaged files, apart from OSError.
DECODE_ERRORS = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    TypeError,
    struct.error,
    zlib.error,
)
# Pillow stops at 1 MB, which the workflows that image generators write into a PNG exceed.
MAX_TEXT_BYTES = 64 * 2**20
PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_BYTES
PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
# What Pillow raises then has one of these in it; the last is that of Pillow 10.1.
_TEXT_LIMITS = ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY", "Decompressed Data Too Large")
_UPRIGHT = 1  # the EXIF orientation of an image that is not to be turned
_SAVE_DEPTH = "save depth as a 16-bit single-channel PNG, or as a .npy or .exr of floats"
_SAVE_IMAGE = "save it as an 8-bit JPEG or PNG"
_CHECK_PATH = "check the path"


@dataclass(frozen=True)
class DepthFormat:
    """How the stored numbers of a depth map become depth.

    scale: depth per count, of a 16-bit PNG and of a .npy of integers; floats are depth already.
    invalid: a stored number that means unknown, besides 0, NaN and +inf. max_depth: what is farther
    is unknown. Raises UserError for a scale or a maximum that is not positive.
    """

    scale: float | None = None
    invalid: float = 0.0
    max_depth: float = math.inf

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_scale(self.scale)
        if not self.max_depth > 0:
            hint = "it must be a positive number, in units of depth"
            raise UserError(f"the maximum of depth is {self.max_depth!r}", hint=hint)


def read_image(path: str | Path | BytesIO) -> np.ndarray:
    """Returns an image as u8 [h w 3], upright by its EXIF orientation, on white, 16 bits as 8.

    Raises UserError if the file is missing, damaged, too large, or not an image.
    """
    return read_oriented_image(path)[0]


def read_oriented_image(path: str | Path | BytesIO) -> tuple[np.ndarray, int]:
    """Returns an image as `read_image`, and the EXIF orientation it is stored in, 1 to 8."""
    with open_image(path, "image") as opened:
        return upright_rgb(opened, path), exif_orientation(opened)


def upright_rgb(image: Image.Image, path: object) -> np.ndarray:
    """Returns an opened image as u8 [h w 3], as `read_image` does; path: of it, for errors."""
    return orient(_to_rgb(image, path), exif_orientation(image))


def read_depth(path: str | Path, form: DepthFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth as `read_stored_depth`, upright by its own EXIF orientation."""
    depth, valid, orientation = read_stored_depth(path, form)
    return orient(depth, orientation), orient(valid, orientation)


def read_stored_depth(path: str | Path, form: DepthFormat) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns depth f32 [h w] and valid bool [h w] of a file as stored, and its EXIF orientation.

    The file is a 16-bit PNG, a .npy of [h w] or [h w 1], or a .exr (`exr_io`). The scale of a PNG
    must be known: the format's, or the one that `viz.images.save_depth` writes into it. Stored 0,
    NaN, +inf and what the format excludes are unknown: there depth is 0 and valid False.

    Raises UserError if the file is missing, damaged or of another kind, has a negative value, or
    has no valid one.
    """
    path = as_path(path)
    suffix = path.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        what = f"depth in a {suffix or 'nameless'} file is not understood"
        raise UserError(what, where=path, hint=_SAVE_DEPTH)
    if suffix == ".png":
        with _open_png16(path) as opened:
            stored, orientation = np.asarray(opened), exif_orientation(opened)
            scale = form.scale or _own_scale(opened)
        if scale is None:
            hint = "state the depth scale, e.g. 0.001 for millimeters"
            raise UserError("the unit of its counts is not known", where=path, hint=hint)
    else:
        is_exr = suffix == ".exr"
        stored = read_depth_channel(path, _SAVE_DEPTH) if is_exr else _read_npy(path)
        orientation, scale = _UPRIGHT, form.scale
    is_count = stored.dtype.kind in "iu"
    factor = scale if is_count and scale is not None else 1.0
    stored = stored.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if form.invalid:  # compared in float32, as most are stored
            stored[stored.astype(np.float32) == np.float32(form.invalid)] = np.nan
        depth = (stored * factor).astype(np.float32)
    if np.any(stored < 0):
        what = f"depth holds negative values (down to {np.nanmin(stored):g})"
        raise UserError(what, where=path, hint="mark unknown pixels by 0")
    valid = np.isfinite(depth) & (depth > 0) & (depth <= form.max_depth)
    if not valid.any():
        excluded = form.invalid or form.max_depth < math.inf
        what = f"holds no valid depth (all is 0, NaN{', excluded' if excluded else ''} or inf)"
        raise UserError(what, where=path, hint="remove the file or fix it")
    return np.where(valid, depth, np.float32(0)), valid, orientation


def _own_scale(image: Image.Image) -> float | None:
    """Returns the depth per count that a PNG states itself, None if it does not."""
    with suppress(TypeError, ValueError, UserError):
        return check_scale(float(image.info["scale"])) if "unit" in image.info else None
    return None


def holds_floats(path: str | Path) -> bool:
    """Returns whether a file is a .exr or a .npy of floats, to which no scale applies."""
    suffix = Path(path).suffix.lower()
    if suffix != ".npy":
        return suffix == ".exr"
    dtype = numpy_io.npy_dtype(path)
    return dtype is not None and dtype.kind == "f"


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an array [h w ...], stored in an EXIF orientation from 1 to 8, upright."""
    transposed = array.swapaxes(0, 1)
    upright = {
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }
    return np.ascontiguousarray(upright.get(orientation, array))


def check_scale(scale: object) -> float:
    """Returns a depth scale; raises UserError if it is not a positive number."""
    if isinstance(scale, int | float) and not isinstance(scale, bool):  # noqa: SIM102
        if math.isfinite(scale) and scale > 0:
            return float(scale)
    hint = "it must be a positive number, e.g. 0.001 for millimeters"
    raise UserError(f"depth scale is {scale!r}", hint=hint)


def refuse_orientation(orientation: int, path: object) -> None:
    """Raises UserError for a file of a data set whose EXIF orientation is not 1.

    Cameras and depth of a data set are for the pixels as published. With such a tag they may be
    stored in another order.
    """
    if orientation != _UPRIGHT:
        what = f"its EXIF orientation is {orientation}, so its pixels may not be as published"
        hint = "unpack the original again; if only the tag was added, exiftool -Orientation= FILE"
        raise UserError(what, where=path, hint=f"{hint} removes it")


@contextmanager
def open_image(path: str | Path | BytesIO, kind: str) -> Iterator[Image.Image]:
    """Opens and decodes an image file; decoder errors name its kind ("depth map")."""
    try:
        with warnings.catch_warnings():
            # A large photograph is fine. Pillow refuses above twice its limit, 179 million pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = _source(path)
            if isinstance(path, str | Path) and str(path).lower().endswith(HEIF_SUFFIXES):
                register_heif(path)
            with Image.open(source) as opened:
                if opened.format == "PNG":
                    _verify_png(source)
                opened.load()
                yield opened
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("no such file", where=path, hint=_CHECK_PATH) from error
    except Image.DecompressionBombError as error:
        what = f"more pixels than a {kind} should have"
        raise UserError(what, where=path, hint="scale it down") from error
    except (OSError, *DECODE_ERRORS) as error:
        if any(limit in str(error) for limit in _TEXT_LIMITS):
            what = f"its text unpacks to more than {MAX_TEXT_BYTES // 2**20} MB"
            raise UserError(what, where=path, hint="save it without its text") from error
        reason = getattr(error, "strerror", None) or "not an image format known here, or damaged"
        article = "an" if kind[0] in "aeiou" else "a"
        what = f"cannot be read as {article} {kind} ({reason})"
        raise UserError(what, where=path, hint="replace the file") from error


def register_heif(path: str | Path) -> None:
    """Teaches Pillow to read the photographs of phones; raises UserError without the package."""
    if importlib.util.find_spec("pillow_heif") is None:
        hint = "pip install 'modality_forcing[heif]', or save it as JPEG"
        raise UserError("needs the package pillow-heif", where=path, hint=hint)
    import pillow_heif

    pillow_heif.register_heif_opener()


def _source(path: str | Path | BytesIO) -> str | Path | BytesIO:
    """Returns what Pillow opens: the content of an object of a bucket."""
    if isinstance(path, BytesIO) or not is_address(path):
        return path
    return BytesIO(read_bytes(path))


def _verify_png(path: str | Path | BytesIO) -> None:
    """Raises an error of DECODE_ERRORS or OSError if the checksum of a chunk of a PNG differs.

    Pillow does not compare those of the pixels: one changed bit in a hundred gave other pixels.
    """
    with Image.open(path) as opened:  # once more, since it cannot be read after it is verified
        opened.verify()


def decode_jpeg(content: bytes, max_pixels: float = math.inf) -> np.ndarray:
    """Returns a JPEG as u8 [h w 3], not rotated; raises ValueError if it is damaged or larger.

    The pixels equal Pillow's, which uses the same library, in two thirds of the time.
    """
    import simplejpeg

    if max_pixels < math.inf:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(content)[:2])
        if height * width > max_pixels:
            raise ValueError(f"an image of {width} x {height} pixels")
    return simplejpeg.decode_jpeg(content, "RGB")


def jpeg_orientation(content: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, reading only its header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(BytesIO(content), formats=("JPEG",)) as opened:
            return exif_orientation(opened)


def read_png16(path: Path) -> np.ndarray:
    """Returns the counts of a 16-bit gray PNG as f64 [h w]; raises as `refuse_orientation`."""
    with _open_png16(path) as opened:
        refuse_orientation(exif_orientation(opened), path)
        return np.asarray(opened).astype(np.float64)


@contextmanager
def _open_png16(path: Path) -> Iterator[Image.Image]:
    with open_image(path, "depth map") as opened:
        if opened.mode not in MODES_16_BIT:
            kinds = {"1": "a 1-bit", "L": "an 8-bit", "P": "a palette"}
            kind = kinds.get(opened.mode, f"a color ({opened.mode})")
            raise UserError(f"is {kind} image, not 16-bit depth", where=path, hint=_SAVE_DEPTH)
        yield opened


def exif_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 where there is none that can be read."""
    with suppress(OSError, *DECODE_ERRORS):
        stored = image.getexif().get(ExifTags.Base.Orientation)
        if isinstance(stored, int) and stored in range(1, 9):
            return stored
    return _UPRIGHT


def _to_rgb(image: Image.Image, path: object) -> np.ndarray:
    """Returns a decoded image as u8 [h w 3] in its stored raster."""
    if image.mode in MODES_16_BIT:
        return _gray_from_16_bits(image, path)
    if image.mode == "F":
        raise UserError("holds floats, not an image", where=path, hint=_SAVE_IMAGE)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _gray_from_16_bits(image: Image.Image, path: object) -> np.ndarray:
    counts = np.asarray(image).astype(np.int64)
    if counts.min() < 0 or counts.max() > 65535:
        raise UserError("holds more than 16 bits, not an image", where=path, hint=_SAVE_IMAGE)
    gray = ((counts + 128) // 257).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _read_npy(path: Path) -> np.ndarray:
    """Returns the numbers of a .npy as stored [h w]."""
    stored = numpy_io.read_npy(path, _SAVE_DEPTH)
    if stored.dtype.kind not in "fiu":
        what = f"holds {stored.dtype}, not numbers of depth"
        raise UserError(what, where=path, hint=_SAVE_DEPTH)
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.size == 0:
        hint = "save one map, rows by columns"
        raise UserError(f"has shape {stored.shape}, not [h w]", where=path, hint=hint)
    return stored
