"""Hypersim: rendered rooms.

Layout: ai_VVV_NNN/images/scene_cam_XX_final_hdf5/frame.IIII.color.hdf5 (linear light) and, in
scene_cam_XX_geometry_hdf5, frame.IIII.depth_meters.hdf5 and frame.IIII.render_entity_id.hdf5, each
with the key "dataset"; beside the scenes metadata_images_split_scene_v1.csv, with split and
release, and metadata_camera_parameters.csv.

depth_meters is the distance along each pixel's ray, NaN where there is none; an entity of -1 is no
surface either. Depth here is along the normal of the image plane. That is the camera's axis unless
the film is tilted: it is in 287 of 482 scenes, by up to 41 degrees (tilt-shift), and there only the
normal agrees with intrinsics, which are then computed from the rays too (`camera_of`). The image is
the light, scaled so that its 90th percentile becomes 0.8, with a gamma of 2.2.
Source: apple/ml-hypersim, README, contrib/mikeroberts3000 and scene_generate_images_tonemap.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_hdf5, wrap_parse_errors
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record, read_csv
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir

_GAMMA = 2.2
_SPLIT_COLUMNS = (
    *("scene_name", "camera_name", "frame_id"),
    *("included_in_public_release", "split_partition_name"),
)


class _Frame(NamedTuple):
    scene: str
    camera: str
    number: int
    rays: np.ndarray

    def path(self, root: Path, kind: str, content: str) -> Path:
        folder = root / self.scene / "images" / f"scene_{self.camera}_{kind}_hdf5"
        return folder / f"frame.{self.number:04}.{content}.hdf5"


def _list_frames(root: Path, split: str, unused: Unused) -> list[_Frame]:
    path = root / "metadata_images_split_scene_v1.csv"
    source = "it is in evermotion_dataset/analysis of apple/ml-hypersim"
    rows = [
        (row["scene_name"], row["camera_name"], _frame_number(row["frame_id"], path))
        for row in read_csv(path, _SPLIT_COLUMNS, source)
        if row["included_in_public_release"] == "True" and row["split_partition_name"] == split
    ]
    rays = _read_rays(root / "metadata_camera_parameters.csv")
    here = {scene: is_dir(root / scene) for scene, _, _ in rows}  # many download only some
    rows = [row for row in rows if here[row[0]]]
    bare = sorted({scene for scene, _, _ in rows if scene not in rays})
    unused.add("scenes have no camera that can be read", sum(here.values()), bare)
    frames = [_Frame(*row, rays[row[0]]) for row in rows if row[0] in rays]
    files = [
        (frame.path(root, "final", "color"), frame.path(root, "geometry", "depth_meters"))
        for frame in frames
    ]
    folders = {path.parent for pair in files for path in pair}
    found = {path for folder in folders for path in glob_paths(folder, "*.hdf5")}
    kept = [found.issuperset(pair) for pair in files]
    images, maps = ([pair[i] for pair in files if pair[i] in found] for i in range(2))
    unused.add_partners(images, maps, compress(files, kept))
    listed = {pair for pair in files if is_dir(pair[0].parent)}
    absent = [image for image, depth in listed if found.isdisjoint((image, depth))]
    unused.add("frames of the list are not there", len(listed), sorted(absent))
    return list(compress(frames, kept))


def _frame_number(text: str, path: Path) -> int:
    if not text.isdecimal():
        what = f"{text!r} is not the number of a frame"
        raise UserError(what, where=path, hint="download it again")
    return int(text)


def _read_rays(path: Path) -> Mapping[str, np.ndarray]:
    """Returns M_cam_from_uv f64 [3 3] of each scene, to axes x right, y up, z back."""
    names = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    source = "it is in contrib/mikeroberts3000 of apple/ml-hypersim"
    rows = read_csv(path, ("scene_name", *names), source)
    rays: dict[str, np.ndarray] = {}
    with wrap_parse_errors(path, "holds a camera that is not numbers", "download it again"):
        for row in rows:
            matrix = np.array([row[name] for name in names], np.float64).reshape(3, 3)
            if np.isfinite(matrix).all() and abs(np.linalg.det(matrix)) > 1e-6:
                rays[row["scene_name"]] = matrix
    return rays


def camera_of(rays: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns intrinsics f64 [3 3] and the length f64 [h w] of each pixel's ray per unit of depth.

    rays: M_cam_from_uv, where u is -1 at the left edge of the image and 1 at the right, v is -1 at
    the lower edge and 1 at the upper. Depth is along the normal of the image plane. Intrinsics of a
    film tilted about both axes have a little skew (at most 2%).
    """
    height, width = size
    uv_of_pixel = np.array(
        [[2 / width, 0, 1 / width - 1], [0, -2 / height, 1 - 1 / height], [0, 0, 1]]
    )
    directions = np.diag([1.0, -1.0, -1.0]) @ rays @ uv_of_pixel
    # A rotation of the axes changes no ray. The one that leaves a triangle makes the third axis the
    # normal of the plane.
    triangle = np.linalg.qr(directions)[1]
    triangle *= np.sign(np.diag(triangle))[:, None]
    intrinsics = np.linalg.inv(triangle)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows, np.ones(size)], axis=-1)
    lengths = np.linalg.norm(pixels @ triangle.T, axis=-1) / triangle[2, 2]
    return intrinsics / intrinsics[2, 2], lengths


def tonemap(light: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Returns an image u8 [h w 3] of linear light [h w 3].

    surface: bool [h w], the pixels that determine the exposure.
    """
    light = np.nan_to_num(light.astype(np.float64), nan=0.0, posinf=1e6, neginf=0.0)
    scale = 1.0
    if surface.any():
        percentile = np.percentile(light[surface] @ [0.3, 0.59, 0.11], 90)
        scale = 0.8**_GAMMA / percentile if percentile >= 1e-4 else 0.0
    image = np.clip(np.maximum(light * scale, 0) ** (1 / _GAMMA), 0, 1)
    return np.rint(image * 255).astype(np.uint8)


def _read_frame(info: DatasetInfo, frame: _Frame) -> Record:
    path = frame.path(info.root, "final", "color")
    light = read_hdf5(path, "dataset")
    distance = read_hdf5(frame.path(info.root, "geometry", "depth_meters"), "dataset")
    entity = read_hdf5(frame.path(info.root, "geometry", "render_entity_id"), "dataset")
    shape = distance.shape
    if distance.ndim != 2 or entity.shape != shape or light.shape != (*shape, 3):
        what = f"holds {light.shape}, its distances {shape} and its entities {entity.shape}"
        raise UserError(what, where=path, hint="unpack the scene again")
    surface = entity != -1
    intrinsics, lengths = camera_of(frame.rays, (shape[0], shape[1]))
    name = path.with_name(f"frame.{frame.number:04}.hdf5")
    image, depth = tonemap(light, surface), distance / lengths
    return make_record(info, name, image, depth, valid=surface, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="hypersim",
    title="Hypersim",
    splits=("train", "val", "test"),
    license="CC BY-SA 3.0",
    layout="ai_VVV_NNN/images/scene_cam_XX_{final,geometry}_hdf5/frame.IIII.*.hdf5",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
