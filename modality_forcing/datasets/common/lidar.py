"""Points of a laser scanner as sparse depth of an image: nearest point per pixel, occlusion."""

from __future__ import annotations

import numpy as np

from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.poses import invert_pose, transform_points

MIN_DEPTH = 0.5  # meters: nearer points are on the vehicle that carries the scanner

# Occlusion is tested on a grid of so many cells per image width, about the distance of scan lines.
_CELLS = 200
# An occluder is nearer by this factor and by so many meters.
_MIN_RATIO, _MIN_GAP = 1.1, 1.0
_EMPTY = np.float32(np.inf)


def finite_points(points: np.ndarray) -> np.ndarray:
    """Returns the points [k 3] of [n 3] whose coordinates are finite, usually all of them."""
    finite = np.isfinite(points)
    return points if finite.all() else points[finite.all(axis=1)]


def to_camera(
    points: np.ndarray,
    scan_pose: np.ndarray,
    image_pose: np.ndarray,
    extrinsics: np.ndarray | None = None,
) -> np.ndarray:
    """Returns points f64 [n 3] of a scan in the axes of a camera at another time.

    points: [n 3] in a frame whose pose in the world was scan_pose when they were measured.
    image_pose: of the frame that carries the camera, when it took the image. extrinsics: the pose
    of the camera in that frame, None if it is the camera's own. Moving objects are not compensated.
    """
    camera = image_pose if extrinsics is None else image_pose @ extrinsics
    # Far from the world's origin only f64 keeps centimeters: combine the poses first.
    return transform_points(points, invert_pose(camera) @ scan_pose)


def project_points(
    points: np.ndarray,
    camera: Camera,
    size: tuple[int, int] | None = None,
    *,
    drop_occluded: bool = True,
    min_depth: float = MIN_DEPTH,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w], 0 where invalid, and valid bool [h w] of points [n 3].

    points: in the camera's frame; those nearer than min_depth are ignored. size: (h, w) of the
    raster, None for the image's own. The nearest point of a pixel is kept. drop_occluded: removes
    the points in `occlusion_mask`.
    """
    pixels, ok = camera.project(points)
    z = np.asarray(points[:, 2], np.float32)
    ok &= z >= min_depth
    return rasterize_points(pixels[ok], z[ok], camera.size, size, drop_occluded=drop_occluded)


def rasterize_points(
    pixels: np.ndarray,
    z: np.ndarray,
    image_size: tuple[int, int],
    size: tuple[int, int] | None = None,
    *,
    drop_occluded: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same as `project_points` for depths z [n] at pixels [n 2] of an image.

    Points outside of the (h, w) of the image are ignored.
    """
    column, row, inside = _cells(pixels, image_size, size or image_size)
    with np.errstate(over="ignore"):  # infinite depth is refused with the record
        z = z[inside].astype(np.float32)
    if drop_occluded:
        seen = ~occlusion_mask(pixels[inside], z, image_size)
        column, row, z = column[seen], row[seen], z[seen]
    height, width = size or image_size
    # The nearest is written last. Nothing else of the raster is touched.
    far_to_near = np.argsort(-z)
    index, z = (row * width + column)[far_to_near], z[far_to_near]
    depth, valid = np.zeros(height * width, np.float32), np.zeros(height * width, np.bool_)
    depth[index], valid[index] = z, True
    return depth.reshape(height, width), valid.reshape(height, width)


def occlusion_mask(pixels: np.ndarray, z: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Returns bool [n], which points of depth z [n] at pixels [n 2] the camera cannot see.

    A scanner is not where the camera is, and sees behind objects. Such points have nearer ones (by
    a tenth, and by a meter) on all sides: above, below, left and right, in a window of 3 x 3 cells
    of 1/200 of the image's width (or a pixel). A test for nearer points on any one side would be
    simpler but would drop most of the far road, as it does for every receding surface.
    """
    width = min(_CELLS, image_size[1])
    height = max(1, round(width * image_size[0] / image_size[1]))
    column, row, inside = _cells(pixels, image_size, (height, width))
    column, row, depth = column + 1, row + 1, z[inside].astype(np.float32)
    cells = np.full((height + 2, width + 2), _EMPTY, np.float32)  # with an empty border
    np.minimum.at(cells.reshape(-1), row * (width + 2) + column, depth)
    # The minimum of three neighbors in a row, and in a column.
    rows = np.minimum(np.minimum(cells[:, :-2], cells[:, 2:]), cells[:, 1:-1])
    columns = np.minimum(np.minimum(cells[:-2], cells[2:]), cells[1:-1])
    sides = (
        rows[row - 1, column - 1],
        rows[row + 1, column - 1],
        columns[row - 1, column - 1],
        columns[row - 1, column + 1],
    )
    occluder = np.maximum.reduce(sides)  # the farthest of the nearest on each side
    result = np.zeros(len(z), np.bool_)
    result[inside] = (depth > _MIN_RATIO * occluder) & (depth - occluder > _MIN_GAP)
    return result


def _cells(
    pixels: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns column and row i64 [k] in a raster of the image, and bool [n], which are inside."""
    (height, width), (rows, columns) = image_size, size
    x, y = pixels[:, 0] + 0.5, pixels[:, 1] + 0.5
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column = (x[inside] * (columns / width)).astype(np.int64)
    row = (y[inside] * (rows / height)).astype(np.int64)
    return np.minimum(column, columns - 1), np.minimum(row, rows - 1), inside
