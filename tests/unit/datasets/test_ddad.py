"""DDAD: points transformed between two times, in the DGP format of TRI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import check
from modality_forcing.datasets.common.poses import (
    invert_pose,
    make_pose,
    rotation_from_quaternion,
    transform_points,
)
from modality_forcing.datasets.ddad import DATASET
from modality_forcing.errors import UserError

SIZE = (60, 100)
K = {"fx": 50.0, "fy": 52.0, "cx": 48.0, "cy": 31.0, "skew": 0.0}
NONE = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
SCANNER = (-0.7015, -0.0058, 0.0154, 0.7125, 111.45, -2261.38, -12.73)
CAMERA = (-0.0267, 0.0101, -0.7047, 0.7090, 113.67, -2262.80, -11.14)  # two meters ahead
PIXELS = np.array([[10.0, 40.0], [30.0, 50.0], [99.0, 59.0], [60.0, 30.0]])
DEPTH = np.array([5.0, 7.5, 60.0, 12.0])


def pose(numbers: tuple[float, ...]) -> dict[str, Any]:
    return {
        "rotation": dict(zip(("qw", "qx", "qy", "qz"), numbers[:4], strict=True)),
        "translation": dict(zip("xyz", numbers[4:], strict=True)),
    }


def matrix(numbers: tuple[float, ...]) -> np.ndarray:
    return make_pose(rotation_from_quaternion(*numbers[:4]), np.array(numbers[4:]))


def datum(kind: str, sensor: str, file: str, numbers: tuple[float, ...], **more) -> dict[str, Any]:
    key = f"key of {file}"
    content = {
        "filename": file,
        "pose": pose(numbers),
        "annotations": {"1": f"bounding_box_3d/{sensor}/1.json"},
        **more,
    }
    return {
        "datum": {kind: content},
        "id": {"name": sensor, "index": "0", "timestamp": "2464-11-12T01:04:10Z"},
        "key": key,
    }


def scene(
    folder: Path, name: str = "scene_ab12.json", camera: tuple[float, ...] = CAMERA
) -> np.ndarray:
    """Writes a sample of two cameras, the second without image; returns the first's image."""
    x, y = ((PIXELS[:, i] - K[f"c{'xy'[i]}"]) / K[f"f{'xy'[i]}"] * DEPTH for i in range(2))
    points = transform_points(
        transform_points(np.stack([x, y, DEPTH], axis=1), matrix(camera)),
        invert_pose(matrix(SCANNER)),
    )
    stored = np.concatenate([points, np.full((len(points), 1), 7.0)], axis=1)
    stored = np.concatenate([stored, [[np.nan, 0, 0, 0], [np.inf, 0, 0, 0]]])
    for part in ("point_cloud/LIDAR", "point_cloud/LIDAR_FRONT", "rgb/CAMERA_01", "calibration"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    np.savez(folder / "point_cloud/LIDAR/1561.npz", data=stored)
    np.savez(folder / "point_cloud/LIDAR_FRONT/1561.npz", data=stored[:1])
    image = np.full((*SIZE, 3), 90, np.uint8)
    Image.fromarray(image).save(folder / "rgb/CAMERA_01/1560.jpg")
    radar = {"datum": {"radar_point_cloud": {}}, "id": {"name": "RADAR"}, "key": "radar"}
    data = [
        datum(
            "image", "CAMERA_01", "rgb/CAMERA_01/1560.jpg", camera, height=SIZE[0], width=SIZE[1]
        ),
        datum(
            "image", "CAMERA_05", "rgb/CAMERA_05/1560.jpg", camera, height=SIZE[0], width=SIZE[1]
        ),
        datum(
            "point_cloud",
            "LIDAR",
            "point_cloud/LIDAR/1561.npz",
            SCANNER,
            point_format=["X", "Y", "Z", "INTENSITY"],
        ),
        datum("point_cloud", "LIDAR_FRONT", "point_cloud/LIDAR_FRONT/1561.npz", CAMERA),
        radar,
    ]
    sample = {
        "calibration_key": "c0ffee",
        "datum_keys": [one["key"] for one in data],
        "id": {"name": ""},
    }
    later = {"calibration_key": "c0ffee", "datum_keys": ["nobody's"], "id": {"name": ""}}
    (folder / name).write_text(json.dumps({"name": "", "data": data, "samples": [sample, later]}))
    calibration = {
        "names": ["LIDAR", "CAMERA_05", "CAMERA_01"],
        "intrinsics": [NONE, {**K, "fx": 9.0}, K],
        "extrinsics": [],
    }
    (folder / "calibration/c0ffee.json").write_text(json.dumps(calibration))
    return image


def test_points_are_transformed_by_the_poses_of_both_times(tmp_path: Path):
    image = scene(tmp_path)
    source = DATASET.open(tmp_path, "every")
    assert len(source) == 1
    record = check(source[0])
    assert np.abs(record.image.astype(int) - image).max() <= 1  # JPEG
    assert np.argwhere(record.valid).tolist() == sorted([int(y), int(x)] for x, y in PIXELS)
    found = [record.depth[int(y), int(x)] for x, y in PIXELS]
    np.testing.assert_allclose(found, DEPTH, rtol=1e-6)
    np.testing.assert_allclose(record.intrinsics, [[50, 0, 48], [0, 52, 31], [0, 0, 1]])
    assert (record.unit, record.source, record.id) == ("metric", "ddad", "rgb/CAMERA_01/1560")


def test_splits_are_those_of_the_index(tmp_path: Path):
    for name in ("000000", "000001", "000150"):
        scene(tmp_path / name)
    with pytest.raises(
        UserError,
        match=r"no ddad\.json, which names the scenes of split train; "
        r"put it there, or use --split=every",
    ):
        DATASET.open(tmp_path, "train")
    index = {
        "0": ["000000/scene_ab12.json", "000001/scene_ab12.json"],
        "1": ["000150/scene_ab12.json"],
    }
    content = {
        "metadata": {},
        "scene_splits": {split: {"filenames": names} for split, names in index.items()},
    }
    (tmp_path / "ddad.json").write_text(json.dumps(content))
    assert [len(DATASET.open(tmp_path, split)) for split in ("train", "val", "every")] == [2, 1, 3]
    assert DATASET.open(tmp_path, "val")[0].id == "000150/rgb/CAMERA_01/1560"
    (tmp_path / "ddad.json").write_text('{"scene_splits": {"0": []}}')
    with pytest.raises(UserError, match=r"ddad\.json: names no scenes of split train"):
        DATASET.open(tmp_path, "train")


def test_folder_of_another_data_set_is_reported(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        DATASET.open(tmp_path / "none", "every")
    (tmp_path / "._scene_1.json").write_bytes(b"\x00\x05\x16\x07")
    with pytest.raises(
        UserError, match=r"holds no frame of DDAD's every split; its layout is ddad\.json"
    ):
        DATASET.open(tmp_path, "every")


def rewrite(path: Path, change) -> None:
    loaded = json.loads(path.read_text())
    change(loaded)
    path.write_text(json.dumps(loaded))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"data": [3], "samples": []}'),
        lambda path: rewrite(path, lambda scene: scene.pop("samples")),
        lambda path: rewrite(
            path, lambda scene: scene["data"][2]["datum"]["point_cloud"].pop("pose")
        ),
        lambda path: rewrite(
            path,
            lambda scene: scene["data"][2]["datum"]["point_cloud"]["pose"]["rotation"].update(
                qw="x"
            ),
        ),
    ],
)
def test_damaged_scene_is_named(tmp_path: Path, change):
    scene(tmp_path)
    change(tmp_path / "scene_ab12.json")
    with pytest.raises(
        UserError, match=r"scene_ab12\.json: is not (valid JSON|a scene of the DGP format)"
    ):
        DATASET.open(tmp_path, "every")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "rgb/CAMERA_01/1560.jpg",
            lambda path: path.write_bytes(b"\xff\xd8"),
            "1560.jpg: cannot be read as an image",
        ),
        (
            "point_cloud/LIDAR/1561.npz",
            lambda path: path.write_bytes(b"PK"),
            "1561.npz: cannot be read as a .npz",
        ),
        (
            "point_cloud/LIDAR/1561.npz",
            lambda path: np.savez(path, points=np.ones((3, 4))),
            "has no array .data., but points",
        ),
        (
            "point_cloud/LIDAR/1561.npz",
            lambda path: np.savez(path, data=np.ones(3)),
            "of shape .3,., not points",
        ),
        (
            "point_cloud/LIDAR/1561.npz",
            lambda path: np.savez(path, data=np.zeros((0, 4))),
            "its depth has no valid pixel",
        ),
        ("calibration/c0ffee.json", lambda path: path.unlink(), "c0ffee.json: no such file"),
        (
            "calibration/c0ffee.json",
            lambda path: path.write_text('{"names": ["CAMERA_01"]}'),
            "no pinhole camera CAMERA_01",
        ),
        (
            "calibration/c0ffee.json",
            lambda path: path.write_text(
                json.dumps({"names": ["CAMERA_01"], "intrinsics": [{**K, "cx": 928.0}]})
            ),
            "is 100 x 60 pixels, but camera CAMERA_01 has its principal point at .928, 31.",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, change, message: str):
    scene(tmp_path)
    source = DATASET.open(tmp_path, "every")
    change(tmp_path / file)
    with pytest.raises(UserError, match=message) as caught:
        source[0]
    assert "\n" not in str(caught.value)


def test_sensor_without_a_pose_is_reported(tmp_path: Path):
    scene(tmp_path)
    rewrite(
        tmp_path / "scene_ab12.json",
        lambda scene: scene["data"][2]["datum"]["point_cloud"]["pose"]["rotation"].update(
            qw=0, qx=0, qy=0, qz=0
        ),
    )
    with pytest.raises(UserError, match=r"1561\.npz: its scene gives it no pose"):
        DATASET.open(tmp_path, "every")[0]
