"""Points of a laser scanner to sparse depth of a picture: poses, the nearest point of each pixel, what the camera cannot see.

A pose is an f64 [4 4] that takes points of a frame (vehicle, sensor) to the one it is posed in (world, vehicle).
"""

from __future__ import annotations

import numpy as np

from modality_forcing.datasets.common.cameras import Camera

NEAREST = 0.5  # metres: what is nearer is the vehicle that carries the scanner

_CELLS = 200  # a picture's width in cells in which hidden points are looked for: about the distance of scan lines
_NEARER, _AT_LEAST = 1.1, 1.0  # what hides a point is nearer by this factor and by this many metres
_EMPTY = np.float32(np.inf)


def rotation_from_quaternion(qw: float, qx: float, qy: float, qz: float) -> np.ndarray:
    """Returns the rotation f64 [3 3] of a quaternion of any length; raises ValueError if that is 0 or not finite."""
    quaternion = np.array([qw, qx, qy, qz], np.float64)
    length = np.linalg.norm(quaternion)
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"no rotation has the quaternion {quaternion.tolist()}")
    w, x, y, z = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def make_pose(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Returns the pose of a rotation [3 3] followed by a translation [3]."""
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = translation
    return pose


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """Returns the pose that leads back."""
    back = pose[:3, :3].T
    return make_pose(back, -back @ pose[:3, 3])


def transform_points(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Returns points f64 [n 3] under a pose."""
    # Not by BLAS, whose threads wait for each other in products as thin as this. Coordinate by coordinate: a fifth of the time.
    return (
        np.einsum("in,ji->nj", np.ascontiguousarray(points.T, np.float64), pose[:3, :3])
        + pose[:3, 3]
    )


def finite_points(points: np.ndarray) -> np.ndarray:
    """Returns the points [k 3] of [n 3] that have three finite coordinates: all of them as a rule."""
    known = np.isfinite(points)
    return points if known.all() else points[known.all(axis=1)]


def to_camera(
    points: np.ndarray,
    pose_lidar_time: np.ndarray,
    pose_camera_time: np.ndarray,
    extrinsics: np.ndarray | None = None,
) -> np.ndarray:
    """Returns points f64 [n 3] of a scan as a camera has them that took its picture at another time.

    points: [n 3] in the frame whose pose in the world, when they were measured, is pose_lidar_time. pose_camera_time: of
    the frame that carries the camera, when it took the picture; extrinsics: of the camera in that frame, None if it is the
    camera's own. What moves by itself is not compensated.
    """
    camera = pose_camera_time if extrinsics is None else pose_camera_time @ extrinsics
    # Far from the world's origin only f64 keeps centimetres: the poses are joined before they meet a point.
    return transform_points(points, invert_pose(camera) @ pose_lidar_time)


def project_points(
    points: np.ndarray,
    camera: Camera,
    size: tuple[int, int] | None = None,
    *,
    drop_occluded: bool = True,
    nearest: float = NEAREST,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w], 0 where unknown, and valid bool [h w] of points [n 3] in the camera's frame.

    size: (h, w) of the raster, the picture's own if None. Of points that share a pixel the nearest is kept.
    drop_occluded: leaves out what `occlusion_mask` finds. nearest: points at a depth below are passed over.
    """
    pixels, ok = camera.project(points)
    z = np.asarray(points[:, 2], np.float32)
    ok &= z >= nearest
    return rasterize_points(pixels[ok], z[ok], camera.size, size, drop_occluded=drop_occluded)


def rasterize_points(
    pixels: np.ndarray,
    z: np.ndarray,
    picture: tuple[int, int],
    size: tuple[int, int] | None = None,
    *,
    drop_occluded: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w], 0 where unknown, and valid bool [h w] of depths z [n] at pixels [n 2] of a picture.

    The same as `project_points` for points that were projected already; those outside the picture's (h, w) are passed over.
    """
    column, row, inside = _cells(pixels, picture, size or picture)
    z = z[inside].astype(np.float32)
    if drop_occluded:
        seen = ~occlusion_mask(pixels[inside], z, picture)
        column, row, z = column[seen], row[seen], z[seen]
    height, width = size or picture
    far_to_near = np.argsort(
        -z
    )  # so that the nearest is written last; the raster itself is touched nowhere else
    at, z = (row * width + column)[far_to_near], z[far_to_near]
    depth, valid = np.zeros(height * width, np.float32), np.zeros(height * width, np.bool_)
    depth[at], valid[at] = z, True
    return depth.reshape(height, width), valid.reshape(height, width)


def occlusion_mask(pixels: np.ndarray, z: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """Returns bool [n], which points of depth z [n] at pixels [n 2] are behind something that the camera sees instead.

    A scanner stands elsewhere than the camera and sees past what hides things from it. Such points have nearer ones (by
    a tenth, and by a metre) all around them: above, below, left and right, in a window of three by three cells of 1/200
    of the picture's width (or a pixel). Nearer points on any one side would do for a simpler test, but those everything
    has that recedes: it would drop most of the far road.
    """
    width = min(_CELLS, picture[1])
    height = max(1, round(width * picture[0] / picture[1]))
    column, row, inside = _cells(pixels, picture, (height, width))
    column, row, depth = column + 1, row + 1, z[inside].astype(np.float32)
    cells = np.full((height + 2, width + 2), _EMPTY, np.float32)  # with an empty frame
    np.minimum.at(cells.reshape(-1), row * (width + 2) + column, depth)
    rows = np.minimum(
        np.minimum(cells[:, :-2], cells[:, 2:]), cells[:, 1:-1]
    )  # the least of three beside each other
    columns = np.minimum(np.minimum(cells[:-2], cells[2:]), cells[1:-1])
    sides = (
        rows[row - 1, column - 1],
        rows[row + 1, column - 1],
        columns[row - 1, column - 1],
        columns[row - 1, column + 1],
    )
    farthest = np.maximum.reduce(sides)  # of the nearest on each side
    result = np.zeros(len(z), np.bool_)
    result[inside] = (depth > _NEARER * farthest) & (depth - farthest > _AT_LEAST)
    return result


def _cells(
    pixels: np.ndarray, picture: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column and row i64 [k] in a raster of the picture, of the k pixels that lie within it, and bool [n] which those are."""
    (height, width), (rows, columns) = picture, size
    x, y = pixels[:, 0] + 0.5, pixels[:, 1] + 0.5
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, row = (
        (x[inside] * (columns / width)).astype(np.int64),
        (y[inside] * (rows / height)).astype(np.int64),
    )
    return np.minimum(column, columns - 1), np.minimum(row, rows - 1), inside
