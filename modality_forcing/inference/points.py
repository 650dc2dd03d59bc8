"""Colored point clouds and meshes of depth maps, and their files.

Coordinates are a camera's: x to the right, y down, z forward, in the unit of depth. Where depth
jumps, no surface was seen: there points are left out and meshes are cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import ndimage

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.resize import Size
from modality_forcing.errors import UserError
from modality_forcing.inference import geometry_files
from modality_forcing.inference.inputs import as_number, as_whole
from modality_forcing.inference.result import Result
from modality_forcing.paths import as_path, write_file

FOV = 65.0  # degrees, where nothing is known of the camera: what the paper's authors take
EDGE = 0.04  # relative difference of depth between neighbors that is a jump: theirs too
MAX_POINTS = 2_000_000  # viewers in browsers take no more


@dataclass(frozen=True)
class Cloud:
    """Colored points: xyz in the unit of depth, rgb as in the image."""

    xyz: Float[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Mesh:
    """Colored vertices and the triangles between them, seen counterclockwise by the camera."""

    xyz: Float[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]


def camera(size: Size, fov: float = FOV) -> np.ndarray:
    """Returns intrinsics f64 [3 3] of a camera for images of (h, w) `size`.

    fov: degrees across the longer side. The center of the first pixel is at (0, 0). Raises
    UserError for an angle that no such camera has.
    """
    fov = as_number("fov", fov)
    if not 0 < fov < 180:
        hint = "give degrees between 0 and 180, such as 65"
        raise UserError(f"the field of view is {fov:g}", hint=hint)
    focal = max(size) / 2 / math.tan(math.radians(fov) / 2)
    return pinhole(focal, focal, (size[1] - 1) / 2, (size[0] - 1) / 2)


def check_edge(edge: float) -> float:
    """Returns a tolerance of depth between neighbors; raises UserError unless it is above 0."""
    edge = as_number("edge", edge)
    if not edge > 0:
        hint = f"give a share of depth above 0, such as {EDGE}"
        raise UserError(f"the tolerance of edges is {edge:g}", hint=hint)
    return edge


def cloud(
    result: Result, fov: float = FOV, *, edge: float = EDGE, max_points: int = MAX_POINTS
) -> Cloud:
    """Returns the points of a result with depth.

    Args:
      fov: field of view across the longer side, in degrees.
      edge: pixels whose neighbors differ in depth by more than this share of it are left out.
      max_points: of larger maps every second, third... row and column is taken.

    Raises UserError for a result without depth, an impossible field of view, and no points.
    """
    depth, kept = _surface(result, edge)
    step = _step(depth.shape, max_points)
    rows, columns = np.nonzero(kept[::step, ::step])
    return _points(result, depth, rows * step, columns * step, fov)


def mesh(
    result: Result, fov: float = FOV, *, edge: float = EDGE, max_points: int = MAX_POINTS
) -> Mesh:
    """Returns the surface of a result with depth, cut where depth jumps. See `cloud`."""
    depth, kept = _surface(result, edge)
    step = _step(depth.shape, max_points)
    # A face spans a block of step + 1 pixels, none of which may be at a jump.
    origin = -((step + 1) // 2) if step % 2 else -(step // 2)
    spans = ndimage.minimum_filter(kept, step + 1, origin=origin, mode="constant", cval=0)
    corners = kept[::step, ::step]
    whole = spans[::step, ::step][: corners.shape[0] - 1, : corners.shape[1] - 1].astype(bool)
    number = np.full(corners.shape, -1, np.int32)
    number[corners] = np.arange(np.count_nonzero(corners), dtype=np.int32)
    quads = [number[:-1, :-1], number[1:, :-1], number[:-1, 1:], number[1:, 1:]]
    top_left, bottom_left, top_right, bottom_right = (x[whole] for x in quads)
    upper = np.stack([top_left, bottom_left, top_right], axis=1)
    lower = np.stack([top_right, bottom_left, bottom_right], axis=1)
    rows, columns = np.nonzero(corners)
    points = _points(result, depth, rows * step, columns * step, fov)
    return Mesh(points.xyz, points.rgb, np.concatenate([upper, lower]))


def write(geometry: Cloud | Mesh, path: str | Path) -> Path:
    """Writes a cloud or a mesh as .ply or .glb and returns the path.

    PLY keeps the camera's axes. GLB has y up and looks along -z, as glTF prescribes, and colors
    that are shown as they are, unlit. Raises UserError for another suffix, for nothing to write,
    and if the file cannot be written.
    """
    path = as_path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("ply", "glb"):
        raise UserError("is neither .ply nor .glb", where=path, hint="choose one of these suffixes")
    write_file(path, encode(geometry, kind))
    return path


def encode(geometry: Cloud | Mesh, kind: str) -> bytes:
    """Returns the file of a cloud or a mesh; kind: ply or glb. Raises UserError if it is empty."""
    if not len(geometry.xyz):
        hint = "check the depth, or raise the tolerance of edges"
        raise UserError("no points: all pixels are unknown or at a jump of depth", hint=hint)
    faces = geometry.faces if isinstance(geometry, Mesh) else None
    write_as = geometry_files.ply if kind == "ply" else geometry_files.glb
    return write_as(geometry.xyz, geometry.rgb, faces)


def depth_edges(depth: np.ndarray, valid: np.ndarray, relative: float) -> np.ndarray:
    """Returns bool [h w]: where valid depth within one pixel differs by more than a share of it."""
    low = ndimage.minimum_filter(np.where(valid, depth, np.inf), 3, mode="nearest")
    high = ndimage.maximum_filter(np.where(valid, depth, -np.inf), 3, mode="nearest")
    return valid & (np.where(valid, high - low, 0) > relative * depth)


def _surface(result: Result, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and the pixels bool [h w] that are of a surface."""
    depth, valid = result.require_depth()
    valid = valid & np.isfinite(depth) & (depth > 0)
    return depth, valid & ~depth_edges(depth, valid, check_edge(edge))


def _step(shape: tuple[int, ...], max_points: int) -> int:
    most = as_whole("max_points", max_points, 1)
    return max(1, math.ceil(math.sqrt(math.prod(shape) / most)))


def _points(
    result: Result, depth: np.ndarray, rows: np.ndarray, columns: np.ndarray, fov: float
) -> Cloud:
    matrix = camera((depth.shape[0], depth.shape[1]), fov)
    z = depth[rows, columns].astype(np.float64)
    x = (columns - matrix[0, 2]) / matrix[0, 0] * z
    y = (rows - matrix[1, 2]) / matrix[1, 1] * z
    gray = np.full((len(z), 3), 128, np.uint8)
    rgb = gray if result.image is None else result.image[rows, columns]
    return Cloud(np.stack([x, y, z], axis=1).astype(np.float32), rgb)
