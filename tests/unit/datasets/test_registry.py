"""The registry: what every data set provides, what no reader may depend on, unknown names."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import Record, RecordSource
from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets import aria_synthetic, registry
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.eth3d import scale_camera
from modality_forcing.datasets.registry import NAMES, check_split, find_dataset
from modality_forcing.errors import UserError
from tests import layouts

HERE = Path(registry.__file__).parent

PAIRS = [name for name in NAMES if name not in ("tfds_images", "webdataset")]  # with depth
OPTIONS = {"folder": {"depth_scale": "0.001"}}
# Why an image of half the size is refused; other readers rescale its intrinsics.
REFUSED = {
    "argoverse2": "images of 60 x 80 pixels, and this one 30 x 40",
    "aria_synthetic": "is 11 x 11 pixels, but its camera 22 x 22",
    "blendedmvs": "is 4 x 3 pixels, but 00000000_cam.txt has its principal point",
    "colmap": "is 30 x 20 pixels, but its camera 60 x 40",
    "eth3d": "is 30 x 20 pixels, but its camera 60 x 40",
    "kitti_depth": "no day's images have 621 x 188 pixels",
    "kitti_raw": "is of images of 100 x 60 pixels, but 0000000007.png has 50 x 30",
    "middlebury": "is 3 x 2 pixels, but its camera 6 x 4",
    "nyuv2": "is 320 x 240 pixels, but its camera 640 x 480",
    "parallel_domain": "is 32 x 24 pixels, but camera camera3 has its principal point",
    "scannet": "is 8 x 6 pixels, but intrinsic_depth.txt has its principal point",
    "sunrgbd": "is 3 x 2 pixels, but intrinsics.txt has its principal point",
    "waymo": "image of FRONT in frame 0 is 50 x 30 pixels, its camera 100 x 60",
}
# Their images come from cameras, which write orientations; models are of the stored pixels.
PHOTOGRAPHS = ("colmap", "eth3d", "megadepth")
_DEPTH = re.compile("depth|disparity|confidence|groundtruth")
# Depth that is not that of every second pixel: projected, divided by a ray's length, up to a cut.
RECOMPUTED = ("ddad", "hypersim", "foundationstereo")


def write(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Writes a frame by the functions of the data set's own tests, and returns them."""
    for package in {"argoverse2": ["pyarrow"], "hypersim": ["h5py"], "megadepth": ["h5py"]}.get(
        name, []
    ):
        pytest.importorskip(package)
    tests = importlib.import_module(f"tests.unit.datasets.test_{name}")
    match name:
        case "argoverse2" | "waymo":
            frames = [tests.message(*tests.scene()[:3])] if name == "waymo" else "train"
            tests.write(root, frames)
        case "aria_synthetic":
            camera = scale_camera(aria_synthetic.CAMERA, (22, 22))
            pinhole = Camera("pinhole", (22, 22), 10, 10, camera.cx, camera.cy)
            monkeypatch.setattr(aria_synthetic, "_SIZE", (22, 22))
            monkeypatch.setattr(aria_synthetic, "CAMERA", camera)
            monkeypatch.setattr(aria_synthetic, "PINHOLE", pinhole)
            tests.write(root / "42", np.full((22, 22), 900, np.uint16), black(22, 22))
        case "arkitscenes":
            video = root / "Training" / tests.VIDEO
            tests.video(video, kind="lowres_wide", size=(3, 4))
            tests.meta(root, f"{tests.VIDEO},1,Training,Up")
        case "blendedmvs":
            tests.frame(root / tests.PROJECT)
            layouts.text(root / "training_list.txt", tests.PROJECT)
        case "colmap":
            layouts.image(root / "images/a.png", 40, 60)
            tests.reconstruction(
                root, "PINHOLE 60 40 50 50 30.5 20.5", {1: (0, 0, 2)}, "30.5 20.5 1"
            )
        case "ddad":
            root.mkdir()
            tests.scene(root)
        case "diode":
            tests.write(root / "train")
        case "eth3d":
            tests.scene(root / "courtyard", np.ones((40, 60)), black(40, 60))
        case "folder":
            tests.write_folder(root, (12, 16), np.arange(12 * 16).reshape(12, 16))
        case "foundationstereo":
            tests.write(root / "a/dataset/data/left", np.arange(16).reshape(4, 4) + 5000)
        case "hypersim":
            tests.scene(root)
            tests.lists(root, ["ai_001_001,cam_00,7,True,,train"], {"ai_001_001": tests.TILTED})
        case "kitti_depth":
            tests.counts(root / tests.depth_path())
            tests.write_image(root / tests.raw())
        case "kitti_raw":
            tests.raw(root, np.array([[50.0, 40.0]]), np.array([9.0]))
        case "megadepth":
            layouts.image(root / "0000/dense0/imgs/1.jpg", 4, 6)
            layouts.hdf5(root / "0000/dense0/depths/1.h5", "depth", np.ones((4, 6)))
        case "middlebury":
            layouts.image(root / "im0.png", 4, 6)
            layouts.pfm(root / "disp0.pfm", np.ones((4, 6), np.float32))
            layouts.text(root / "calib.txt", tests.CALIBRATION)
        case "nyuv2":
            layouts.stored(root / "train/a/rgb_0001.png", black(480, 640))
            layouts.stored(root / "train/a/depth_0001.png", np.ones((480, 640), np.uint16))
        case "parallel_domain":
            tests.frame(root)
            tests.calibrate(root)
        case "redwood":
            layouts.image(root / "color/00000.png", 4, 6)
            layouts.counts(root / "depth/00000.png", 4, 6)
        case "scannet":
            tests.scan(root / "scans/scene0000_00", "0")
            layouts.text(root / "scannetv2_train.txt", "scene0000_00")
        case "seven_scenes":
            tests.frame(root / "chess/seq-01", 0)
        case "sunrgbd":
            tests.scene(root / "kv2/a")
        case "tartanair":
            layouts.image(root / "image_lcam_front/0_lcam_front.png", 6, 6)
            layouts.packed(
                root / "depth_lcam_front/0_lcam_front_depth.png", tests.far_and_near(6, 6)
            )
        case "taskonomy":
            tests.view(root)
            tests.split(root, "allensville,1,0,0")
        case "tum":
            tests.sequence(root / "any", ["1341847980.7"], ["1341847980.7"])
    return tests


def black(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def halve(root: Path) -> None:
    """Keeps every second row and column of all rasters."""
    half = np.s_[::2, ::2]
    files = [path for path in root.rglob("[!.]*") if path.is_file()]
    for path in files:
        match path.suffix:
            case ".JPG" if "ground_truth_depth" in path.parts:  # ETH3D's floats
                path.write_bytes(np.fromfile(path, "<f4").reshape(40, 60)[half].tobytes())
            case ".png" | ".jpg" | ".JPG":
                with Image.open(path) as opened:
                    layouts.stored(path, np.array(opened)[half])
            case ".npy":
                np.save(path, np.load(path)[half])
            case ".npz" if "depth" in path.parts:
                np.savez(path, data=np.load(path)["data"][half])
            case ".pfm":
                layouts.pfm(path, np.ones((2, 3)))
            case ".h5" | ".hdf5":
                import h5py

                with h5py.File(path, "r+") as opened:
                    ((key, stored),) = [(key, opened[key][()]) for key in opened]
                    del opened[key]
                    opened[key] = stored[half]


def open_root(name: str, root: Path) -> RecordSource:
    dataset = find_dataset(name).with_options(OPTIONS.get(name, {}))
    return dataset.open(root, "every" if name == "ddad" else dataset.splits[0])


def same(record: Record, other: Record) -> bool:
    pairs = [
        (getattr(record, key), getattr(other, key)) for key in ("image", "depth", "intrinsics")
    ]
    return record.id == other.id and all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


@pytest.mark.parametrize("name", PAIRS)
def test_points_do_not_depend_on_where_the_root_is(name: str, tmp_path: Path, monkeypatch):
    write(name, tmp_path / "first", monkeypatch)
    first = open_root(name, tmp_path / "first")[0]
    moved = tmp_path / "freiburg3 train NYUdata" / "test"
    moved.parent.mkdir()
    (tmp_path / "first").rename(moved)
    (tmp_path / "link").symlink_to(moved)
    monkeypatch.chdir(moved)
    for root in (moved, Path(), Path("../test/"), tmp_path / "link"):
        assert same(open_root(name, root)[0], first)


@pytest.mark.parametrize("name", PAIRS)
def test_points_do_not_depend_on_the_size_of_the_copy(name: str, tmp_path: Path, monkeypatch):
    tests = write(name, tmp_path / "set", monkeypatch)
    whole = open_root(name, tmp_path / "set")[0]
    if name == "waymo":
        small = {camera: tests.jpeg(90, (30, 50)) for camera in (1, 2)}
        tests.write(tmp_path / "set", [tests.message(*tests.scene()[:3], jpegs=small)])
    halve(tmp_path / "set")
    if name in REFUSED:
        with pytest.raises(UserError) as caught:
            open_root(name, tmp_path / "set")[0]
        assert REFUSED[name] in str(caught.value) and "\n" not in str(caught.value)
        return
    half = open_root(name, tmp_path / "set")[0]
    expected = scale_intrinsics(whole.intrinsics, whole.depth.shape, half.depth.shape)
    np.testing.assert_allclose(half.intrinsics, expected, rtol=1e-6, atol=1e-6)
    if name not in RECOMPUTED:
        np.testing.assert_array_equal(half.depth, whole.depth[::2, ::2])


@pytest.mark.parametrize("name", PAIRS)
def test_points_do_not_depend_on_an_exif_orientation(name: str, tmp_path: Path, monkeypatch):
    tests = write(name, tmp_path / "set", monkeypatch)
    whole = open_root(name, tmp_path / "set")[0]
    is_eth3d = name == "eth3d"  # whose depth is floats, whatever its suffix
    is_read = name in (*PHOTOGRAPHS, "folder", "hypersim")
    tags = range(2, 9) if is_read and name != "hypersim" else (2, 8)
    cases = [(n, True, True) for n in tags] + [(3, False, True), (6, False, False)]
    for orientation, turned, both in cases:
        root = tmp_path / f"{orientation} {turned} {both}" / "set"
        shutil.copytree(tmp_path / "set", root)
        if name == "waymo":
            jpegs = {camera: tests.jpeg(90, (60, 100), orientation) for camera in (1, 2)}
            tests.write(root, [tests.message(*tests.scene()[:3], jpegs=jpegs)])
        for path in sorted(root.rglob("[!.]*")):
            is_depth = _DEPTH.search(str(path.relative_to(root))) is not None
            is_raster = path.suffix in (".png", ".jpg", ".JPG") and not (is_depth and is_eth3d)
            if is_raster and (both or not is_depth):
                layouts.tag(path, orientation, turned=turned)
        if name == "folder" and not turned:  # of which the tag is believed
            continue
        if is_read:
            record = open_root(name, root)[0]
            np.testing.assert_array_equal(record.depth, whole.depth)
            np.testing.assert_array_equal(record.intrinsics, whole.intrinsics)
            if not turned or orientation > 4 or name == "folder":
                np.testing.assert_allclose(record.image.astype(int), whole.image, atol=1)
            continue
        with pytest.raises(UserError) as caught:
            open_root(name, root)[0]
        message = str(caught.value)
        assert f"its EXIF orientation is {orientation}" in message and "\n" not in message


def test_depth_with_an_orientation_of_its_own_is_refused(tmp_path: Path, monkeypatch):
    for name in ("tum", "kitti_depth", "sunrgbd", "tartanair", "foundationstereo", "arkitscenes"):
        root = tmp_path / name
        write(name, root, monkeypatch)
        maps = [path for path in root.rglob("*.png") if _DEPTH.search(str(path.relative_to(root)))]
        for path in maps:
            layouts.tag(path, 3, turned=False)
        with pytest.raises(UserError, match="EXIF orientation is 3") as caught:
            open_root(name, root)[0]
        assert any(str(path) in str(caught.value) for path in maps)


def test_every_module_of_the_folder_is_registered():
    assert (
        sorted(NAMES)
        == list(NAMES)
        == sorted(
            path.stem for path in HERE.glob("*.py") if path.stem not in ("__init__", "registry")
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_has_a_description(name: str, tmp_path: Path):
    if name == "tfds_images" and importlib.util.find_spec("tensorflow_datasets") is None:
        with pytest.raises(
            UserError, match=r"needs the package tensorflow_datasets; pip install .*\[tfds\]"
        ):
            find_dataset(name)
        return
    dataset = find_dataset(name)
    assert (
        dataset.name == name and dataset.title and dataset.license and "all" not in dataset.splits
    )
    assert check_split(dataset, "") == dataset.splits[0]
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as caught:
            source = dataset.open(root, dataset.splits[0])
            len(source)
        assert str(caught.value).startswith(str(root)) and "\n" not in str(caught.value)


def test_missing_package_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"hypersim needs the package h5py; pip install .*\[datasets\]"
    ):
        find_dataset("hypersim")
    assert find_dataset("tum").name == "tum"


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(UserError, match="did you mean tartanair"):
        find_dataset("TartanAirV2")
    with pytest.raises(UserError, match="no split 'test'; choose one of train"):
        check_split(find_dataset("tum"), "test")
