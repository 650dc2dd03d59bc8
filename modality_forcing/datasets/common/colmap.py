"""Reads COLMAP models: cameras, posed images and their points, as text or binary.

A model is a folder with cameras, images and points3D, all .txt or all .bin. As everywhere in this
package, the center of the first pixel is at (0, 0); COLMAP has it at (0.5, 0.5). Poses are world to
camera. Camera models: SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, OPENCV_FISHEYE and
THIN_PRISM_FISHEYE (`cameras`). Format: colmap.github.io/format.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.datasets.common.cameras import Camera, Model
from modality_forcing.datasets.common.formats import read_lines, wrap_read_errors
from modality_forcing.datasets.common.poses import rotation_from_quaternion
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file, list_dir, read_bytes

# Name, number of parameters and model here, by COLMAP's number of it.
_MODELS: dict[int, tuple[str, int, Model | None]] = {
    0: ("SIMPLE_PINHOLE", 3, "pinhole"),
    1: ("PINHOLE", 4, "pinhole"),
    2: ("SIMPLE_RADIAL", 4, "radial"),
    3: ("RADIAL", 5, "radial"),
    4: ("OPENCV", 8, "brown"),
    5: ("OPENCV_FISHEYE", 8, "opencv_fisheye"),
    6: ("FULL_OPENCV", 12, None),
    7: ("FOV", 5, None),
    8: ("SIMPLE_RADIAL_FISHEYE", 4, None),
    9: ("RADIAL_FISHEYE", 5, None),
    10: ("THIN_PRISM_FISHEYE", 12, "thin_prism_fisheye"),
}
_BY_NAME: dict[str, tuple[int, Model | None]] = {
    name: (count, model) for name, count, model in _MODELS.values()
}
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_FILES = ("cameras", "images", "points3D")
_AGAIN = "export the model again with colmap model_converter"


@dataclass(frozen=True, eq=False)
class PosedImage:
    """One posed image and the pixels of the points it saw."""

    name: str  # its path below the folder of the images
    camera: int
    rotation: np.ndarray  # f64 [3 3], world to camera
    translation: np.ndarray  # f64 [3]
    pixels: np.ndarray  # f64 [n 2] of the points it saw
    points: np.ndarray  # i64 [n], their ids


@dataclass(frozen=True, eq=False)
class Model3D:
    """A sparse model: cameras by id, images in the order of their names, points f64 [3] by id."""

    cameras: Mapping[int, Camera]
    images: tuple[PosedImage, ...]
    points: Mapping[int, np.ndarray]

    def depths(self, image: PosedImage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns points f64 [n 3], pixels f64 [n 2] and errors f64 [n] of an image's points.

        points: in the axes of the image. pixels: their projections. errors: the distance of these
        from the observed pixels, inf for a point behind the camera.
        """
        known = np.array([number in self.points for number in image.points], bool)
        world = np.array([self.points[number] for number in image.points[known]]).reshape(-1, 3)
        points = world @ image.rotation.T + image.translation
        pixels, ok = self.cameras[image.camera].project(points)
        errors = np.where(ok, np.linalg.norm(pixels - image.pixels[known], axis=1), np.inf)
        return points, pixels, errors


def find_model(root: Path) -> Path | None:
    """Returns the folder of the model: where COLMAP puts it, else the first folder with one."""
    names = ("sparse/0", "sparse", "dense/sparse", "dense/0/sparse", ".")
    others = (path for path in list_dir(root) if not path.name.startswith("."))
    folders = (*(root / name for name in names), *others)
    return next((folder for folder in folders if format_of(folder)), None)


def format_of(folder: Path) -> str:
    """Returns "bin" or "txt" for a folder with a model, else ""."""
    for suffix in ("bin", "txt"):
        if all(is_file(folder / f"{name}.{suffix}") for name in _FILES):
            return suffix
    return ""


def read_model(folder: Path) -> Model3D:
    """Returns the model in a folder.

    Raises UserError for a missing or damaged file and for an unknown camera model.
    """
    suffix = format_of(folder)
    if not suffix:
        hint = "it needs cameras, images and points3D, all .txt or all .bin"
        raise UserError("holds no model", where=folder, hint=hint)
    paths = [folder / f"{name}.{suffix}" for name in _FILES]
    if suffix == "bin":
        cameras, images = _binary_cameras(paths[0]), _binary_images(paths[1])
        points = _binary_points(paths[2])
    else:
        cameras, images = read_cameras(paths[0]), _text_images(paths[1])
        points = _text_points(paths[2])
    in_order = tuple(sorted(images, key=lambda image: image.name))
    for image in in_order:
        if image.camera not in cameras:
            what = f"image {image.name} has camera {image.camera}, which is not there"
            raise UserError(what, where=paths[0], hint=_AGAIN)
    return Model3D(cameras, in_order, points)


def read_cameras(path: Path) -> dict[int, Camera]:
    """Returns the cameras of a cameras.txt by id."""
    cameras = {}
    with wrap_read_errors(path, "COLMAP's cameras"):
        for line in _lines(path):
            number, name, width, height, *numbers = line.split()
            size = int(width), int(height)
            cameras[int(number)] = _camera(name, size, [float(text) for text in numbers], path)
    return cameras


def cameras_of_images(folder: Path) -> dict[str, Camera]:
    """Returns the camera of each image of a text model by name, without reading the points."""
    cameras = read_cameras(folder / "cameras.txt")
    with wrap_read_errors(folder / "images.txt", "COLMAP's images"):
        return {image.name: cameras[image.camera] for image in _text_images(folder / "images.txt")}


def _camera(name: str, size: tuple[int, int], numbers: list[float], path: Path) -> Camera:
    width, height = size
    count, model = _BY_NAME.get(name, (0, None))
    if model is None:
        known = ", ".join(name for name, (_, model) in _BY_NAME.items() if model)
        what = f"camera model {name} is not known here"
        raise UserError(what, where=path, hint=f"known are {known}; undistort first")
    if len(numbers) != count:
        what = f"a {name} camera has {len(numbers)} numbers, not {count}"
        raise UserError(what, where=path, hint=_AGAIN)
    if name in _ONE_FOCAL:
        numbers = [numbers[0], *numbers]
    fx, fy, cx, cy, *distortion = numbers
    with wrap_read_errors(path, "COLMAP's cameras"):
        return Camera(
            model, (height, width), fx, fy, cx=cx - 0.5, cy=cy - 0.5, distortion=tuple(distortion)
        )


def _image(name: str, camera: int, pose: list[float], seen: np.ndarray) -> PosedImage:
    """Returns an image. seen: f64 [m 3] of x, y and the id of the point, -1 for none."""
    seen = seen[seen[:, 2] >= 0]
    return PosedImage(
        name=name,
        camera=camera,
        rotation=rotation_from_quaternion(*pose[:4]),
        translation=np.array(pose[4:7]),
        pixels=seen[:, :2] - 0.5,
        points=seen[:, 2].astype(np.int64),
    )


def _lines(path: Path) -> list[str]:
    return [line for line in read_lines(path) if line.strip() and not line.startswith("#")]


def _text_images(path: Path) -> Iterator[PosedImage]:
    with wrap_read_errors(path, "COLMAP's images"):
        # Only comments are skipped: the second line of an image without points is empty.
        lines = [line for line in read_lines(path) if not line.startswith("#")]
        while lines and not lines[-1].strip():
            lines.pop()
        if len(lines) % 2:
            lines.append("")
        for head, seen in zip(lines[::2], lines[1::2], strict=True):
            _, *numbers, camera, name = head.split(maxsplit=9)
            triples = np.array(seen.split(), np.float64).reshape(-1, 3)
            yield _image(name.strip(), int(camera), [float(text) for text in numbers], triples)


def _text_points(path: Path) -> dict[int, np.ndarray]:
    with wrap_read_errors(path, "COLMAP's points"):
        fields = (line.split(maxsplit=4) for line in _lines(path))
        return {int(number): np.array([x, y, z], np.float64) for number, x, y, z, *_ in fields}


@dataclass
class _Bytes:
    """A binary file, read from the start: little-endian, without padding."""

    content: bytes
    at: int = 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def count(self, min_bytes: int) -> int:
        """Reads a number of items of `min_bytes` or more. Raises ValueError if they do not fit."""
        (count,) = self.take("Q")
        if count * min_bytes > len(self.content) - self.at:
            raise ValueError(f"{count} items in {len(self.content)} bytes")
        return count

    def rows(self, kind: list[tuple[str, str]], count: int) -> np.ndarray:
        found = np.frombuffer(self.content, np.dtype(kind), count, self.at)
        self.at += found.nbytes
        return found

    def text(self) -> str:
        end = self.content.index(b"\0", self.at)
        name = self.content[self.at : end].decode(errors="surrogateescape")  # as paths are
        self.at = end + 1
        return name


def _binary_cameras(path: Path) -> dict[int, Camera]:
    cameras = {}
    with wrap_read_errors(path, "COLMAP's cameras"):
        stored = _Bytes(read_bytes(path, _AGAIN))
        for _ in range(stored.count(24)):
            number, kind, width, height = stored.take("iiQQ")
            name, count, _ = _MODELS.get(kind, (str(kind), 0, None))
            cameras[number] = _camera(name, (width, height), [*stored.take(f"{count}d")], path)
    return cameras


def _binary_images(path: Path) -> Iterator[PosedImage]:
    with wrap_read_errors(path, "COLMAP's images"):
        stored = _Bytes(read_bytes(path, _AGAIN))
        for _ in range(stored.count(73)):
            _, *pose, camera = stored.take("i7di")
            name = stored.text()
            seen = stored.rows([("x", "<f8"), ("y", "<f8"), ("point", "<i8")], stored.count(24))
            yield _image(
                name,
                camera,
                list(pose),
                np.stack([seen[key].astype(np.float64) for key in ("x", "y", "point")], 1),
            )


def _binary_points(path: Path) -> dict[int, np.ndarray]:
    points = {}
    with wrap_read_errors(path, "COLMAP's points"):
        stored = _Bytes(read_bytes(path, _AGAIN))
        for _ in range(stored.count(51)):
            number, x, y, z = stored.take("Q3d")
            stored.at += 3 + 8  # color and error
            track = stored.count(8)
            stored.at += 8 * track
            points[number] = np.array([x, y, z])
    return points
