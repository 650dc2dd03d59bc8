"""OpenEXR files of renderers, whose depth is floats in a channel; needs the extra `exr`.

Whatever is wrong with a file is one line, as for .npy (`numpy_io`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.mirror import fetched
from modality_forcing.paths import read_bytes, require_file
from modality_forcing.text_io import list_some

# Twice what Pillow warns of: it refuses images of more.
_MAX_PIXELS = 179_000_000
_SHOWN = 4  # channels in a message


def require_package(path: str | Path) -> None:
    """Raises UserError, naming a file and the extra, if the package OpenEXR is not installed."""
    if importlib.util.find_spec("OpenEXR") is None:
        hint = "pip install 'modality_forcing[exr]'"
        raise UserError("needs the package OpenEXR", where=path, hint=hint)


def depth_bytes(depth: np.ndarray, path: str | Path) -> bytes:
    """Returns the OpenEXR file of depth f32 [h w], as channel Z, which `read_depth_channel` reads.

    path: for the error without the package OpenEXR.
    """
    require_package(path)
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {"Z": np.ascontiguousarray(depth, np.float32)}
    with tempfile.TemporaryDirectory() as folder:  # it writes to names only
        written = Path(folder) / "depth.exr"
        with OpenEXR.File(header, channels) as file:
            file.write(str(written))
        return read_bytes(written)


def read_depth_channel(path: str | Path, hint: str) -> np.ndarray:
    """Returns the depth of an OpenEXR file as stored, f32 or f16 [h w].

    That is the channel of which a part of the name ends with "depth" (ViewLayer.Depth.Z), else Z,
    else the only one; R of three colors that are equal; alpha aside. hint: how to save depth.

    Raises UserError without the package OpenEXR, and for a file that is missing, damaged or too
    large, of several parts or deep pixels, of a cropped frame, or without such a channel.
    """
    path = require_file(path, hint)
    with fetched(path) as local:
        with _opened(local, path, header_only=True) as opened:
            header, parts = dict(opened.header()), len(opened.parts)  # it is emptied
            size = _size(header["dataWindow"])
            _check(header, size, parts, path)
        with _opened(local, path) as opened:
            channels = {key: one.pixels for key, one in opened.channels().items()}
            if any(pixels.shape != size for pixels in channels.values()):
                raise ValueError("channels of several sizes")
    chosen = _choose(channels)
    if chosen is None:
        listed = list_some(sorted(channels), _SHOWN)
        raise UserError(f"has channels {listed}, none of which is depth", where=path, hint=hint)
    if chosen.dtype.kind != "f":
        raise UserError(f"holds {chosen.dtype}, not floats", where=path, hint=hint)
    return chosen


@contextlib.contextmanager
def _opened(local: Path, path: Path, *, header_only: bool = False) -> Iterator[Any]:
    """Opens an OpenEXR file; raises UserError without the package, and for all that goes wrong.

    path: for errors.
    """
    require_package(path)
    import OpenEXR

    # It prints to stdout what is wrong with pixels, and takes names that are not UTF-8 as bytes.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            name = os.fsencode(local)
            with OpenEXR.File(name, separate_channels=True, header_only=header_only) as opened:
                yield opened
        except UserError:
            raise
        except Exception as error:  # RuntimeError, and what the damage leads to
            what = "cannot be read as OpenEXR (damaged, or another format)"
            raise UserError(what, where=path, hint="export or download it again") from error


def count_numbers(path: Path) -> int:
    """Returns the pixels of an OpenEXR file, times its channels, without unpacking any.

    Raises UserError without the package OpenEXR and for a damaged file.
    """
    with _opened(path, path, header_only=True) as opened:
        parts = [dict(part.header) for part in opened.parts]
        return sum(math.prod(_size(x["dataWindow"])) * len(x["channels"]) for x in parts)


def _size(window: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    (left, top), (right, bottom) = (corner.tolist() for corner in window)
    return bottom - top + 1, right - left + 1


def _check(header: dict, size: tuple[int, int], parts: int, path: Path) -> None:
    if math.prod(size) > _MAX_PIXELS:
        what, hint = "more pixels than a depth map should have", "scale it down"
        raise UserError(what, where=path, hint=hint)
    if parts != 1 or "deep" in str(header.get("type")):
        what = "has several parts" if parts != 1 else "has deep pixels"
        raise UserError(what, where=path, hint="export depth as one flat layer")
    if not np.array_equal(header["dataWindow"], header["displayWindow"]):
        what = "holds another part of the view than its frame (data window, display window)"
        raise UserError(what, where=path, hint="export the whole frame, without a crop or overscan")


def _choose(channels: dict[str, np.ndarray]) -> np.ndarray | None:
    names = [n for n in channels if any(p.lower().endswith("depth") for p in n.split("."))]
    names = names or [n for n in channels if n == "Z"] or list(channels)
    if len(names) > 1:
        names = [n for n in names if n.rpartition(".")[2] != "A"]
    if sorted(n.rpartition(".")[2] for n in names) == ["B", "G", "R"]:
        red, *others = (channels[n] for n in sorted(names, reverse=True))
        return red if all(np.array_equal(red, x, equal_nan=True) for x in others) else None
    return channels[names[0]] if len(names) == 1 else None
