"""Reads COLMAP's models: cameras, posed images and their points, as text or binary.

A model is a folder with cameras, images and points3D, all .txt or all .bin. Pixels are given here as everywhere in this
package, the centre of the first pixel at (0, 0); COLMAP has it at (0.5, 0.5). Poses are world to camera.
Format: colmap.github.io/format.html. SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, OPENCV_FISHEYE and
THIN_PRISM_FISHEYE cameras are known (`data.cameras`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.datasets.common.cameras import Camera, Model
from modality_forcing.datasets.common.formats import read_text, wrap_read_errors
from modality_forcing.errors import UserError

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
_AGAIN = "export the model again with colmap model_converter"


@dataclass(frozen=True, eq=False)
class Image:
    """One posed image and where it saw points."""

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
    images: tuple[Image, ...]
    points: Mapping[int, np.ndarray]

    def depths(self, image: Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, for the points that an image saw, points f64 [n 3] in its axes, pixels f64 [n 2] and miss f64 [n].

        pixels: where the camera with its lens has them. miss: how far that is from where the image saw them, in pixels;
        inf for a point behind the camera.
        """
        known = np.array([number in self.points for number in image.points], bool)
        world = np.array([self.points[number] for number in image.points[known]]).reshape(-1, 3)
        ours = world @ image.rotation.T + image.translation
        pixels, ok = self.cameras[image.camera].project(ours)
        miss = np.where(ok, np.linalg.norm(pixels - image.pixels[known], axis=1), np.inf)
        return ours, pixels, miss


def find_model(root: Path) -> Path | None:
    """Returns the folder of the model in or below a folder: where COLMAP puts it, else the first folder that has one."""
    usual = (
        root / place for place in ("sparse/0", "sparse", "dense/sparse", "dense/0/sparse", ".")
    )
    others = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return next((place for place in (*usual, *others) if kind_of(place)), None)


def kind_of(folder: Path) -> str:
    """Returns "bin" or "txt", by the files of a model in a folder, or "" where there is none."""
    whole = ("cameras", "images", "points3D")
    return next(
        (
            kind
            for kind in ("bin", "txt")
            if all((folder / f"{name}.{kind}").is_file() for name in whole)
        ),
        "",
    )


def read_model(folder: Path) -> Model3D:
    """Returns the model in a folder; raises UserError for a missing or damaged file and for a camera not known here."""
    kind = kind_of(folder)
    if not kind:
        raise UserError(
            "holds no model",
            where=folder,
            hint="it needs cameras, images and points3D, all .txt or all .bin",
        )
    cameras, images, points = (
        folder / f"{name}.{kind}" for name in ("cameras", "images", "points3D")
    )
    if kind == "bin":
        model = Model3D(
            _binary_cameras(cameras), _in_order(_binary_images(images)), _binary_points(points)
        )
    else:
        model = Model3D(
            read_cameras(cameras), _in_order(_text_images(images)), _text_points(points)
        )
    for image in model.images:
        if image.camera not in model.cameras:
            raise UserError(
                f"image {image.name} has camera {image.camera}, which is not there",
                where=cameras,
                hint=_AGAIN,
            )
    return model


def read_cameras(path: Path) -> dict[int, Camera]:
    """Returns the cameras of a cameras.txt by id."""
    cameras = {}
    with wrap_read_errors(path, "COLMAP's cameras"):
        for line in _lines(path):
            number, name, width, height, *numbers = line.split()
            cameras[int(number)] = _camera(
                name, int(width), int(height), [float(text) for text in numbers], path
            )
    return cameras


def cameras_of_images(folder: Path) -> dict[str, Camera]:
    """Returns the camera of each image, by its name, of the cameras.txt and images.txt in a folder; points are not read."""
    cameras = read_cameras(folder / "cameras.txt")
    with wrap_read_errors(folder / "images.txt", "COLMAP's images"):
        return {image.name: cameras[image.camera] for image in _text_images(folder / "images.txt")}


def _in_order(images: Iterator[Image]) -> tuple[Image, ...]:
    return tuple(sorted(images, key=lambda image: image.name))


def _camera(name: str, width: int, height: int, numbers: list[float], path: Path) -> Camera:
    count, model = _BY_NAME.get(name, (0, None))
    if model is None:
        known = ", ".join(name for name, (_, model) in _BY_NAME.items() if model)
        raise UserError(
            f"camera model {name} is not known here",
            where=path,
            hint=f"known are {known}; undistort first",
        )
    if len(numbers) != count:
        raise UserError(
            f"a {name} camera has {len(numbers)} numbers, not {count}", where=path, hint=_AGAIN
        )
    focals, rest = (
        (numbers[:1] * 2, numbers[1:]) if name in _ONE_FOCAL else (numbers[:2], numbers[2:])
    )
    fx, fy = focals
    with wrap_read_errors(path, "COLMAP's cameras"):
        return Camera(model, (height, width), fx, fy, rest[0] - 0.5, rest[1] - 0.5, tuple(rest[2:]))


def _pose(numbers: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of a quaternion w x y z and a vector."""
    w, x, y, z = np.array(numbers[:4]) / np.linalg.norm(numbers[:4])
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return rotation, np.array(numbers[4:7])


def _image(name: str, camera: int, pose: list[float], seen: np.ndarray) -> Image:
    """seen: f64 [m 3] of x, y and the id of the point, -1 for none."""
    seen = seen[seen[:, 2] >= 0]
    rotation, translation = _pose(pose)
    return Image(
        name, camera, rotation, translation, seen[:, :2] - 0.5, seen[:, 2].astype(np.int64)
    )


def _lines(path: Path) -> list[str]:
    return [
        line for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")
    ]


def _text_images(path: Path) -> Iterator[Image]:
    with wrap_read_errors(path, "COLMAP's images"):
        # An image without points has an empty second line: only lines of comments may be passed over.
        lines = [line for line in read_text(path).splitlines() if not line.startswith("#")]
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
    """A binary file, read from its beginning on: little-endian, nothing between numbers."""

    content: bytes
    at: int = 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def count(self, least: int) -> int:
        """A number of things of at least so many bytes each; raises ValueError where the file has no room for them."""
        (count,) = self.take("Q")
        if count * least > len(self.content) - self.at:
            raise ValueError(f"{count} things in {len(self.content)} bytes")
        return count

    def rows(self, kind: list[tuple[str, str]], count: int) -> np.ndarray:
        found = np.frombuffer(self.content, np.dtype(kind), count, self.at)
        self.at += found.nbytes
        return found

    def text(self) -> str:
        end = self.content.index(b"\0", self.at)
        name = self.content[self.at : end].decode()
        self.at = end + 1
        return name


def _binary_cameras(path: Path) -> dict[int, Camera]:
    cameras = {}
    with wrap_read_errors(path, "COLMAP's cameras"):
        stored = _Bytes(path.read_bytes())
        for _ in range(stored.count(24)):
            number, kind, width, height = stored.take("iiQQ")
            name, count, _ = _MODELS.get(kind, (str(kind), 0, None))
            cameras[number] = _camera(name, width, height, list(stored.take(f"{count}d")), path)
    return cameras


def _binary_images(path: Path) -> Iterator[Image]:
    with wrap_read_errors(path, "COLMAP's images"):
        stored = _Bytes(path.read_bytes())
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
        stored = _Bytes(path.read_bytes())
        for _ in range(stored.count(51)):
            number, x, y, z = stored.take("Q3d")
            stored.at += 3 + 8  # colour and error
            track = stored.count(8)
            stored.at += 8 * track
            points[number] = np.array([x, y, z])
    return points
