"""Hypersim: rays to depth for straight and tilted films, tone mapping, the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.records import Notes
from modality_forcing.datasets.hypersim import DATASET, camera_of, tonemap
from tests import layouts

h5py = pytest.importorskip("h5py")

SPLIT = "metadata_images_split_scene_v1.csv"
CAMERAS = "metadata_camera_parameters.csv"
STRAIGHT = np.array([[np.tan(np.pi / 6), 0, 0], [0, np.tan(np.pi / 6) * 0.75, 0], [0, 0, -1]])
# Of scenes ai_017_009 (tilted up) and ai_019_007 (tilted up and aside), nearly rounded.
TILTED = np.array([[0.62, 0, 0], [0, 0.43, 0.17], [0, -0.174, -1.08]])
TWICE = np.array([[0.6, 0.02, -0.16], [0, 0.46, 0.03], [0.164, -0.032, -1.033]])
H, W = 6, 8


def scene(
    root: Path, name: str = "ai_001_001", number: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes one frame; returns light, distances and entities."""
    rng = np.random.default_rng(number)
    folder = root / name / "images"
    light = rng.uniform(0, 3, (H, W, 3)).astype(np.float16)
    distance = rng.uniform(1, 20, (H, W)).astype(np.float16)
    distance[1, 2] = np.nan
    entity = rng.integers(1, 900, (H, W), np.int32)
    entity[3, 4:6] = -1
    layouts.hdf5(folder / f"scene_cam_00_final_hdf5/frame.{number:04}.color.hdf5", "dataset", light)
    layouts.hdf5(
        folder / f"scene_cam_00_geometry_hdf5/frame.{number:04}.depth_meters.hdf5",
        "dataset",
        distance,
    )
    layouts.hdf5(
        folder / f"scene_cam_00_geometry_hdf5/frame.{number:04}.render_entity_id.hdf5",
        "dataset",
        entity,
    )
    return light, distance, entity


def lists(root: Path, rows: list[str], cameras: dict[str, np.ndarray]) -> None:
    """Writes the two tables. rows: scene, camera, frame, released, reason, split."""
    head = (
        "scene_name,camera_name,frame_id,included_in_public_release,"
        "exclude_reason,split_partition_name\n"
    )
    layouts.text(root / SPLIT, head + "".join(f"{row}\n" for row in rows))
    names = ",".join(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))
    lines = [
        f"{name},768,{','.join(map(repr, map(float, rays.ravel())))}\n"
        for name, rays in cameras.items()
    ]
    layouts.text(
        root / CAMERAS, f"scene_name,settings_output_img_height,{names}\n" + "".join(lines)
    )


@pytest.mark.parametrize("rays", [STRAIGHT, TILTED, TWICE])
def test_intrinsics_and_ray_lengths_agree(rays: np.ndarray):
    intrinsics, lengths = camera_of(rays, (H, W))
    assert (
        intrinsics[2].tolist() == [0, 0, 1]
        and intrinsics[1, 0] == 0
        and intrinsics[0, 0] > 0
        and intrinsics[1, 1] > 0
    )
    rows, columns = np.mgrid[:H, :W]
    # Centers of pixels between the edges -1 and 1.
    u, v = (2 * columns + 1) / W - 1, 1 - (2 * rows + 1) / H
    theirs = np.stack([u, v, np.ones((H, W))], axis=-1) @ rays.T
    ours = np.stack([columns, rows, np.ones((H, W))], axis=-1) @ np.linalg.inv(intrinsics).T
    np.testing.assert_allclose(lengths, np.linalg.norm(ours, axis=-1), rtol=1e-12)
    # Angles between all pairs of rays agree: the sets differ by a rotation.
    theirs, ours = (
        array.reshape(-1, 3) / np.linalg.norm(array, axis=-1).reshape(-1, 1)
        for array in (theirs, ours)
    )
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-12)
    # Axes keep their directions and handedness.
    turn = np.linalg.lstsq(theirs, ours, rcond=None)[0]
    assert np.linalg.det(turn) == pytest.approx(1)
    assert turn[0, 0] > 0.8 and turn[1, 1] < -0.8 and turn[2, 2] < -0.8


def test_untilted_camera_has_the_published_intrinsics():
    intrinsics, lengths = camera_of(STRAIGHT, (768, 1024))
    np.testing.assert_allclose(
        intrinsics, [[886.81, 0, 511.5], [0, 886.81, 383.5], [0, 0, 1]], atol=1e-2
    )
    rows, columns = np.mgrid[:768, :1024]
    expected = np.sqrt((columns - 511.5) ** 2 + (rows - 383.5) ** 2 + 886.81**2) / 886.81
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)


@pytest.mark.parametrize("rays", [STRAIGHT, TILTED])
def test_depth_is_distance_divided_by_ray_length(tmp_path: Path, rays: np.ndarray):
    light, distance, entity = scene(tmp_path)
    lists(tmp_path, ["ai_001_001,cam_00,7,True,,train"], {"ai_001_001": rays})
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "ai_001_001/images/scene_cam_00_final_hdf5/frame.0007"
    intrinsics, lengths = camera_of(rays, (H, W))
    valid = np.isfinite(distance) & (entity != -1)
    assert valid.sum() == H * W - 3
    np.testing.assert_array_equal(record.valid, valid)
    np.testing.assert_allclose(record.depth[valid], (distance / lengths)[valid], rtol=1e-6)
    np.testing.assert_allclose(record.intrinsics, intrinsics, rtol=1e-6)
    np.testing.assert_array_equal(record.image, tonemap(light, entity != -1))


def test_tone_mapping_maps_the_90th_percentile_to_0_8():
    light = np.linspace(0, 2, 1001)[:, None, None].repeat(3, axis=2)
    image = tonemap(light, np.ones((1001, 1), bool))
    assert image.dtype == np.uint8 and image[900, 0, 0] == round(0.8 * 255)
    # gamma 2.2: half the light is 0.8 * 0.5^(1 / 2.2)
    assert image[450, 0, 0] == round(0.8 * 0.5 ** (1 / 2.2) * 255) and image[1000, 0, 0] > 204
    # Pixels without a surface, such as windows, do not affect exposure.
    lamp = np.concatenate([light, np.full((5000, 1, 3), 1e4)])
    np.testing.assert_array_equal(tonemap(lamp, lamp[..., 0] < 3)[:1001], image)
    colored = np.tile([[[1.0, 0.0, 0.0]]], (10, 1, 1))
    assert tonemap(colored, np.ones((10, 1), bool))[0, 0].tolist() == [255, 0, 0]  # weighted by 0.3


def test_nonfinite_radiance_is_black_or_white():
    light = np.ones((4, 4, 3), np.float16)
    light[0, 0], light[0, 1], light[0, 2] = np.nan, np.inf, -1
    image = tonemap(light, np.ones((4, 4), bool))
    assert (
        image[0, 0].tolist() == [0, 0, 0]
        and image[0, 1].tolist() == [255] * 3
        and image[0, 2].tolist() == [0, 0, 0]
    )
    assert tonemap(np.zeros((2, 2, 3)), np.ones((2, 2), bool)).max() == 0
    assert tonemap(np.ones((2, 2, 3)), np.zeros((2, 2), bool)).min() == 255


def test_split_follows_the_release(tmp_path: Path):
    rows = [
        "ai_001_001,cam_00,7,True,,train",
        "ai_001_001,cam_00,8,False,bad,train",
        "ai_001_001,cam_01,7,True,,train",  # not downloaded
        "ai_001_002,cam_00,7,True,,val",
        "ai_001_003,cam_00,7,True,,train",  # without a camera
        "ai_001_004,cam_00,7,True,,train",  # not downloaded
        "ai_001_001,cam_00,9,True,,train",  # lost
    ]
    for name in ("ai_001_001", "ai_001_002", "ai_001_003"):
        scene(tmp_path, name)
    lists(
        tmp_path,
        rows,
        {
            "ai_001_001": STRAIGHT,
            "ai_001_002": STRAIGHT,
            "ai_001_003": STRAIGHT * np.nan,
            "ai_001_004": STRAIGHT,
        },
    )
    for split, name in (("train", "ai_001_001"), ("val", "ai_001_002")):
        assert [record.id[:10] for record in layouts.records(DATASET, tmp_path, split)] == [name]
    source = DATASET.open(tmp_path, "train")
    assert isinstance(source, Notes)
    lost = "ai_001_001/images/scene_cam_00_final_hdf5/frame.0009.color.hdf5"
    assert source.notes() == [
        f"{tmp_path}: 1 of 2 scenes have no camera that can be read (ai_001_003)",
        f"{tmp_path}: 1 of 2 frames of the list are not there ({lost})",
    ]
    assert "holds no frame of Hypersim's test split" in layouts.refused(DATASET, tmp_path, "test")


def test_missing_and_damaged_files_are_reported(tmp_path: Path):
    scene(tmp_path)
    lists(tmp_path, ["ai_001_001,cam_00,7,True,,train"], {"ai_001_001": STRAIGHT})
    geometry = tmp_path / "ai_001_001/images/scene_cam_00_geometry_hdf5"
    entities = geometry / "frame.0007.render_entity_id.hdf5"
    layouts.hdf5(entities, "dataset", np.ones((2, 2), np.int32))
    assert "its entities (2, 2)" in layouts.refused(DATASET, tmp_path)
    layouts.junk(entities)
    assert "render_entity_id.hdf5: cannot be read as HDF5" in layouts.refused(DATASET, tmp_path)
    entities.unlink()
    assert "render_entity_id.hdf5: cannot be read as HDF5 (No such file" in layouts.refused(
        DATASET, tmp_path
    )
    lists(tmp_path, ["ai_001_001,cam_00,seven,True,,train"], {"ai_001_001": STRAIGHT})
    assert "'seven' is not the number of a frame" in layouts.refused(DATASET, tmp_path)
    (tmp_path / CAMERAS).write_text((tmp_path / CAMERAS).read_text().replace(",-1.0", ",x"))
    lists_again = layouts.text(
        tmp_path / SPLIT, (tmp_path / SPLIT).read_text().replace("seven", "7")
    )
    assert "a camera that is not numbers" in layouts.refused(DATASET, tmp_path)
    (tmp_path / CAMERAS).unlink()
    assert f"{CAMERAS}: no such file; put it there" in layouts.refused(DATASET, tmp_path)
    lists_again.unlink()
    assert f"{SPLIT}: no such file; put it there" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for split in DATASET.splits:
        assert "no such folder" in layouts.refused(DATASET, tmp_path / "absent", split)
        assert SPLIT in layouts.refused(DATASET, tmp_path / "empty", split)
