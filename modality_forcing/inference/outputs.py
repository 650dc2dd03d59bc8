"""The files of a result: depth as numbers and in colors, uncertainty, images, point clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing.data.resize import limit_longer_side
from modality_forcing.errors import UserError
from modality_forcing.exr_io import depth_bytes
from modality_forcing.inference import points
from modality_forcing.inference.result import Result
from modality_forcing.modalities.base import Modality
from modality_forcing.paths import write_file
from modality_forcing.viz import images

FORMATS = ("npy", "png", "exr", "color", "spectral", "side")
DEFAULT_FORMATS = ("npy", "png", "color")
_LEVEL = 1  # of compression: files of a folder, where compression takes most of the time
_SIDE_PIXELS = 1600  # of the longer side of each half of a side-by-side image, which is for viewing


def parse_formats(text: str) -> tuple[str, ...]:
    """Returns the formats of a list such as "npy,color"; raises UserError for an unknown one."""
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in chosen if name not in FORMATS]:
        hint = f"choose from {', '.join(FORMATS)}"
        raise UserError(f"unknown format {unknown[0]!r}", hint=hint)
    if not chosen:
        raise UserError("no format is given", hint=f"choose from {', '.join(FORMATS)}")
    return chosen


def depth_files(result: Result, formats: Sequence[str], unit: str) -> dict[str, bytes]:
    """Returns the files of estimated depth by the ending of their names.

    formats: of FORMATS. unit: of depth, for the 16-bit PNG. Raises UserError for a result without
    depth and for exr without its package.
    """
    (depth, valid), sigma = result.require_depth(), result.uncertainty
    files: dict[str, bytes] = {}
    for name in formats:
        if name == "npy":
            files["_depth.npy"] = images.npy_bytes(depth, valid)
            if sigma is not None:
                files["_uncertainty.npy"] = images.npy_bytes(sigma, valid)
        elif name == "png":
            png, about = images.png16_bytes(depth, valid, unit, _LEVEL)
            files |= {"_depth.png": png, "_depth.json": about}
        elif name == "exr":
            files["_depth.exr"] = depth_bytes(depth * valid, "--formats=exr")
        elif name == "color":
            files["_depth_color.png"] = images.png_bytes(result.colored(), _LEVEL)
            if sigma is not None:
                files["_uncertainty_color.png"] = images.png_bytes(
                    uncertainty_colors(sigma, valid), _LEVEL
                )
        elif name == "spectral":
            colors = result.colored("spectral")
            files["_depth_spectral.png"] = images.png_bytes(colors, _LEVEL)
        elif name == "side":
            files["_side.png"] = side_by_side(result)
    if sigma is not None and not any(name.startswith("_uncertainty") for name in files):
        files["_uncertainty.npy"] = images.npy_bytes(sigma, valid)
    return files


def image_files(result: Result, formats: Sequence[str]) -> dict[str, bytes]:
    """Returns the files of a generated image; of the formats only `side` is one of images."""
    if result.image is None:
        raise UserError("this result has no image", hint="use a mode that makes images")
    files = {"_image.png": images.png_bytes(result.image, _LEVEL)}
    return files | ({"_side.png": side_by_side(result)} if "side" in formats else {})


def map_files(
    name: str,
    values: np.ndarray,
    colors: np.ndarray,
    formats: Sequence[str],
    *,
    beside: np.ndarray | None = None,
) -> dict[str, bytes]:
    """Returns the files of a map f32 [h w c], such as normals, by their endings.

    name, colors: of its modality, the latter u8 [h w 3]. npy holds the values, NaN where they are
    all 0; png, color and spectral are one PNG of the colors; side has them next to `beside` u8
    [h w 3], what the map was made of.

    Raises UserError as `check_map_formats`.
    """
    check_map_formats(formats)
    files: dict[str, bytes] = {}
    if "npy" in formats:
        files[f"_{name}.npy"] = images.npy_bytes(values, _valid(values))
    if {"png", "color", "spectral"} & set(formats):
        files[f"_{name}.png"] = images.png_bytes(colors, _LEVEL)
    if "side" in formats:
        halves = [_shrunk(x) for x in (beside, colors) if x is not None]
        files["_side.png"] = images.png_bytes(np.concatenate(halves, axis=1), _LEVEL)
    return files


def _valid(values: np.ndarray) -> np.ndarray:
    """Returns where a map [h w c] has a finite value: bool [h w c], nowhere if all c are 0."""
    return np.isfinite(values) & np.any(values != 0, axis=-1, keepdims=True)


def check_map_formats(formats: Sequence[str]) -> None:
    """Raises UserError if none of the formats is one of maps of several channels: exr is none."""
    if set(formats) <= {"exr"}:
        raise UserError("exr is of depth alone", hint="choose from npy, png and side")


def geometry_files(
    result: Result, kind: str, fov: float, edge: float = points.EDGE
) -> dict[str, bytes]:
    """Returns the point cloud and the mesh of a result, none if it has no surface.

    kind: ply or glb. fov: across the longer side, in degrees. edge: as of `points.cloud`.
    """
    mesh = points.mesh(result, fov, edge=edge)
    cloud = points.Cloud(mesh.xyz, mesh.rgb)  # the points of `points.cloud`
    return {
        f"_{name}.{kind}": points.encode(geometry, kind)
        for name, geometry in (("points", cloud), ("mesh", mesh))
        if len(geometry.xyz)
    }


def write_example(
    stem: Path, made: Mapping[str, np.ndarray], modalities: Mapping[str, Modality]
) -> list[Path]:
    """Writes one example and returns the paths.

    Images are PNG. Maps are .npy, 16-bit PNG with its scale, and a PNG in colors. What else has
    three channels, such as normals, is .npy and a PNG in its colors.
    """
    written = []
    for name, x in made.items():
        path = stem.with_name(f"{stem.name}_{name}")
        if x.ndim == 3:
            m = modalities[name]
            contents = {".png": images.png_bytes(m.colorize(x[None])[0])}
            if not m.is_image:
                contents[".npy"] = images.npy_bytes(x, _valid(x))
            for suffix, content in contents.items():
                write_file(path.with_suffix(suffix), content)
                written.append(path.with_suffix(suffix))
        else:
            written += images.save_depth(path, x)
    return written


def side_by_side(result: Result) -> bytes:
    """Returns the PNG of image and depth in colors, side by side, small enough to be viewed."""
    assert result.image is not None
    halves = [_shrunk(result.image), _shrunk(result.colored())]
    return images.png_bytes(np.concatenate(halves, axis=1), _LEVEL)


def _shrunk(image: np.ndarray) -> np.ndarray:
    rows, columns = limit_longer_side((image.shape[0], image.shape[1]), _SIDE_PIXELS)
    if (rows, columns) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((columns, rows), reducing_gap=2.0)
    return np.asarray(resized)


def uncertainty_colors(sigma: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns uncertainty f32 [h w] as colors u8 [h w 3]: dark is certain, gray not valid."""
    limits = (0.0, float(np.percentile(sigma[valid], 98)) if valid.any() else 0.0)
    return images.colorize(sigma, valid, limits, colormap="magma")
