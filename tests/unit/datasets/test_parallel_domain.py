"""ParallelDomain: dense depth in .npz, with cameras by scene or by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import check
from modality_forcing.datasets.parallel_domain import DATASET
from modality_forcing.errors import UserError

SIZE = (48, 64)
K = {"fx": 40.0, "fy": 41.0, "cx": 31.5, "cy": 23.5, "skew": 0.0}
RNG = np.random.default_rng(2)
POSE = {
    "rotation": {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0},
    "translation": {"x": 0.0, "y": 0.0, "z": 0.0},
}
NAME = "000000000000000005"


def frame(
    folder: Path, camera: str = "camera3", name: str = NAME, depth_name: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    image = RNG.integers(0, 256, (*SIZE, 4), np.uint8)
    image[..., 3] = 255  # rendered with alpha
    depth = RNG.uniform(1, 80, SIZE).astype(np.float32)
    depth[:10] = 5000.0  # the sky
    depth[10, :4] = 499.9, 500.0, np.inf, np.nan
    for part in ("rgb", "depth"):
        (folder / part / camera).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"rgb/{camera}/{name}.png")
    np.savez_compressed(folder / f"depth/{camera}/{depth_name or name}.npz", data=depth)
    return image[..., :3], depth


def calibrate(folder: Path, key: str = "c0ffee", **cameras: dict[str, float]) -> None:
    (folder / "calibration").mkdir(exist_ok=True)
    calibrations = cameras or {"camera0": {**K, "fx": 9.0}, "camera3": K, "yaw-0": K}
    content = {
        "names": list(calibrations),
        "intrinsics": list(calibrations.values()),
        "extrinsics": [],
    }
    (folder / f"calibration/{key}.json").write_text(json.dumps(content))


def scene(folder: Path, depth: str = f"depth/camera3/{NAME}.npz", key: str = "c0ffee") -> None:
    def datum(file: str, camera: str, annotations: dict[str, str]) -> dict[str, Any]:
        content = {"filename": file, "pose": POSE, "annotations": annotations}
        return {"datum": {"image": content}, "id": {"name": camera}, "key": f"{file} of {camera}"}

    data = [
        datum(f"rgb/camera3/{NAME}.png", "camera3", {"2": "semantic.png", "6": depth}),
        datum(f"rgb/camera4/{NAME}.png", "camera4", {"6": depth}),  # which is not there
        datum(f"rgb/yaw-0/{NAME}.png", "yaw-0", {"2": "semantic.png"}),  # which has no depth
    ]
    sample = {"calibration_key": key, "datum_keys": [one["key"] for one in data]}
    (folder / "scene_6e42.json").write_text(json.dumps({"data": data, "samples": [sample]}))


@pytest.mark.parametrize("named", [False, True])
def test_depth_is_in_meters_and_sky_is_invalid(tmp_path: Path, named: bool):
    folder = tmp_path / "scene_000017"
    image, depth = frame(folder)
    calibrate(folder)
    if named:
        frame(folder, "yaw-0")
        scene(folder)
    source = DATASET.open(tmp_path, "train")
    assert len(source) == 1
    record = check(source[0])
    np.testing.assert_array_equal(record.image, image)
    valid = np.ones(SIZE, bool)
    valid[:10] = False
    valid[10, 1:4] = False
    np.testing.assert_array_equal(record.valid, valid)
    np.testing.assert_array_equal(record.depth, np.where(valid, depth, 0))
    np.testing.assert_allclose(record.intrinsics, [[40, 0, 31.5], [0, 41, 23.5], [0, 0, 1]])
    assert (record.id, record.unit, record.source) == (
        f"scene_000017/rgb/camera3/{NAME}",
        "metric",
        "parallel_domain",
    )


def test_scene_file_links_images_to_depth_and_calibration(tmp_path: Path):
    _, depth = frame(tmp_path, depth_name="another")
    calibrate(tmp_path)
    calibrate(tmp_path, "beef", camera3={**K, "fx": 77.0})
    scene(tmp_path, "depth/camera3/another.npz", "beef")
    record = DATASET.open(tmp_path, "train")[0]  # the scene's own folder will do
    assert record.intrinsics[0, 0] == 77 and record.depth[20, 20] == depth[20, 20]


def test_folder_without_a_scene_file_needs_exactly_one_calibration(tmp_path: Path):
    frame(tmp_path)
    with pytest.raises(UserError, match=r"has 0 calibrations and no scene_\*\.json"):
        DATASET.open(tmp_path, "train")
    calibrate(tmp_path)
    (tmp_path / "calibration/._c0ffee.json").write_bytes(b"\x00\x05\x16\x07")
    assert len(DATASET.open(tmp_path, "train")) == 1
    calibrate(tmp_path, "beef")
    with pytest.raises(UserError, match=r"has 2 calibrations and no scene_\*\.json"):
        DATASET.open(tmp_path, "train")


def test_images_without_depth_are_skipped(tmp_path: Path):
    frame(tmp_path)
    calibrate(tmp_path)
    frame(tmp_path, "yaw-0", depth_name="other")
    assert [one.camera for one in DATASET.open(tmp_path, "train").items] == ["camera3"]  # pyright: ignore


def test_folder_of_another_data_set_is_reported(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        DATASET.open(tmp_path / "none", "train")
    with pytest.raises(
        UserError, match="holds no frame of ParallelDomain; its layout is scene_000000/"
    ):
        DATASET.open(tmp_path, "train")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            f"depth/camera3/{NAME}.npz",
            lambda path: path.write_bytes(b"PK\x03\x04"),
            "cannot be read as a .npz",
        ),
        (
            f"depth/camera3/{NAME}.npz",
            lambda path: np.savez(path, depth=np.ones(SIZE)),
            "has no array .data., but depth",
        ),
        (
            f"depth/camera3/{NAME}.npz",
            lambda path: np.savez(path, data=np.ones(7)),
            "not a map of numbers",
        ),
        (
            f"depth/camera3/{NAME}.npz",
            lambda path: np.savez(path, data=np.ones((24, 32))),
            "is 64 x 48 pixels and its depth 32 x",
        ),
        (
            f"depth/camera3/{NAME}.npz",
            lambda path: np.savez(path, data=np.full(SIZE, 600.0)),
            "its depth has no valid pixel",
        ),
        (
            f"rgb/camera3/{NAME}.png",
            lambda path: path.write_bytes(b"\x89PNG"),
            "cannot be read as an image",
        ),
        ("calibration/c0ffee.json", lambda path: path.write_text("{"), "is not valid JSON"),
        (
            "calibration/c0ffee.json",
            lambda path: path.write_text('{"names": []}'),
            "holds no pinhole camera camera3",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, change, message: str):
    frame(tmp_path)
    calibrate(tmp_path)
    source = DATASET.open(tmp_path, "train")
    change(tmp_path / file)
    with pytest.raises(UserError, match=message) as caught:
        source[0]
    assert "\n" not in str(caught.value)


def test_map_with_a_channel_axis_is_read(tmp_path: Path):
    _, depth = frame(tmp_path)
    calibrate(tmp_path)
    np.savez(tmp_path / f"depth/camera3/{NAME}.npz", data=depth[..., None])
    assert DATASET.open(tmp_path, "train")[0].depth[20, 20] == depth[20, 20]
