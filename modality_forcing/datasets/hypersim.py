"""Hypersim: rendered rooms.

Layout: ai_VVV_NNN/images/scene_cam_XX_final_hdf5/frame.IIII.color.hdf5 (light, not yet a picture) and, in
scene_cam_XX_geometry_hdf5, frame.IIII.depth_meters.hdf5 and frame.IIII.render_entity_id.hdf5, each with the key "dataset";
beside the scenes metadata_images_split_scene_v1.csv, which tells split and release, and metadata_camera_parameters.csv.

depth_meters is the distance along each pixel's ray, NaN where there is none; an entity of -1 is no surface either. Depth is
measured here along the normal of the picture's plane. That is the camera's axis only where the film is not tilted: it is in
287 of 482 scenes, by up to 41 degrees (tilt-shift), and there only the normal goes with intrinsics, which then come
from the rays too (`camera_of`). The picture is the light times what brings its 90th percentile to 0.8, with a gamma of 2.2.
Source: apple/ml-hypersim, README, contrib/mikeroberts3000 and scene_generate_images_tonemap.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_hdf5
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    make_record,
    read_csv,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "Hypersim"
_GAMMA = 2.2
_SPLIT = "metadata_images_split_scene_v1.csv"
_CAMERAS = "metadata_camera_parameters.csv"


@dataclass(frozen=True)
class _Frame:
    scene: str
    camera: str
    number: int

    def path(self, root: Path, kind: str, what: str) -> Path:
        return (
            root
            / self.scene
            / "images"
            / f"scene_{self.camera}_{kind}_hdf5"
            / f"frame.{self.number:04}.{what}.hdf5"
        )


def _open(root: Path, split: str) -> LazySource[_Frame]:
    root = require_dir(root, _TITLE)
    columns = (
        "scene_name",
        "camera_name",
        "frame_id",
        "included_in_public_release",
        "split_partition_name",
    )
    rows = read_csv(
        root / _SPLIT, columns, "it is in evermotion_dataset/analysis of apple/ml-hypersim"
    )
    named = [
        row
        for row in rows
        if row["included_in_public_release"] == "True" and row["split_partition_name"] == split
    ]
    frames = [
        _Frame(row["scene_name"], row["camera_name"], _whole(row["frame_id"], root / _SPLIT))
        for row in named
    ]
    cameras = _cameras(root / _CAMERAS)
    folders = {frame.path(root, "final", "color").parent for frame in frames}
    here = {
        folder for folder in folders if folder.is_dir()
    }  # who downloads a part of the set has few of the scenes
    frames = [
        frame
        for frame in frames
        if frame.path(root, "final", "color").parent in here and frame.scene in cameras
    ]
    layout = "ai_VVV_NNN/images/scene_cam_XX_{final,geometry}_hdf5/frame.IIII.*.hdf5"
    return LazySource(
        require_nonempty(frames, root, f"{_TITLE}'s {split} split", layout),
        _Read(DatasetInfo("hypersim", "metric", root), cameras),
    )


def _whole(text: str, path: Path) -> int:
    if not text.isdecimal():
        raise UserError(
            f"{text!r} is not the number of a frame", where=path, hint="download it again"
        )
    return int(text)


def _cameras(path: Path) -> Mapping[str, np.ndarray]:
    """The rays of each scene's pixels, f64 [3 3] from (u, v, 1) to the camera's axes: x right, y up, z back."""
    names = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    rows = read_csv(
        path, ("scene_name", *names), "it is in contrib/mikeroberts3000 of apple/ml-hypersim"
    )
    try:
        cameras = {
            row["scene_name"]: np.array([row[name] for name in names], np.float64).reshape(3, 3)
            for row in rows
        }
    except ValueError as error:
        raise UserError(
            "holds a camera that is not numbers", where=path, hint="download it again"
        ) from error
    return {
        scene: rays
        for scene, rays in cameras.items()
        if np.isfinite(rays).all() and abs(np.linalg.det(rays)) > 1e-6
    }


def camera_of(rays: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns intrinsics f64 [3 3] and how far f64 [h w] along each pixel's ray one goes to get ahead by 1.

    rays: M_cam_from_uv; u runs from -1 at the left edge of the picture to 1, v from -1 at the lower edge to 1.
    Ahead is the normal of the picture's plane. Intrinsics of a film tilted both ways have a little skew (at most 2%).
    """
    height, width = size
    uv_of_pixel = np.array(
        [[2 / width, 0, 1 / width - 1], [0, -2 / height, 1 - 1 / height], [0, 0, 1]]
    )
    directions = np.diag([1.0, -1.0, -1.0]) @ rays @ uv_of_pixel
    # Turning the axes changes no ray: the turn that leaves a triangle makes the third axis the plane's normal.
    triangle = np.linalg.qr(directions)[1]
    triangle *= np.sign(np.diag(triangle))[:, None]
    intrinsics = np.linalg.inv(triangle)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows, np.ones(size)], axis=-1)
    lengths = np.linalg.norm(pixels @ triangle.T, axis=-1) / triangle[2, 2]
    return intrinsics / intrinsics[2, 2], lengths


def tonemap(light: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Returns a picture u8 [h w 3] of rendered light [h w 3]; surface: bool [h w] of the pixels that set the exposure."""
    light = np.nan_to_num(light.astype(np.float64), nan=0.0, posinf=1e6, neginf=0.0)
    scale = 1.0
    if surface.any():
        usual = np.percentile(light[surface] @ [0.3, 0.59, 0.11], 90)
        scale = 0.8**_GAMMA / usual if usual >= 1e-4 else 0.0
    return np.rint(np.clip(np.maximum(light * scale, 0) ** (1 / _GAMMA), 0, 1) * 255).astype(
        np.uint8
    )


@dataclass(frozen=True)
class _Read:
    info: DatasetInfo
    cameras: Mapping[str, np.ndarray]

    def __call__(self, frame: _Frame) -> Record:
        place = partial(frame.path, self.info.root)
        path, shape = place("final", "color"), None
        light = read_hdf5(path, "dataset")
        distance = read_hdf5(place("geometry", "depth_meters"), "dataset")
        entity = read_hdf5(place("geometry", "render_entity_id"), "dataset")
        shape = distance.shape
        if distance.ndim != 2 or entity.shape != shape or light.shape != (*shape, 3):
            what = f"holds {light.shape}, its distances {shape} and its entities {entity.shape}"
            raise UserError(what, where=path, hint="unpack the scene again")
        surface = entity != -1
        intrinsics, lengths = camera_of(self.cameras[frame.scene], (shape[0], shape[1]))
        return make_record(
            self.info,
            path.with_name(f"frame.{frame.number:04}.hdf5"),
            tonemap(light, surface),
            distance / lengths,
            surface,
            intrinsics,
        )


DATASET = Dataset("hypersim", _TITLE, "metric", ("train", "val", "test"), "CC BY-SA 3.0", _open)
