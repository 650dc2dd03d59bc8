"""Every data set with an image without depth, and with depth without an image: both are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from modality_forcing.data.records import Notes
from modality_forcing.errors import UserError
from tests import layouts
from tests.unit.datasets.test_registry import PAIRS, open_root, same, write

# Waymo has both in one message. The others have a test of their own.
ELSEWHERE = ("colmap", "folder", "middlebury", "waymo")
_KITTI = "2011_09_26/2011_09_26_drive_0001_sync"
_AV2 = "train/adcf7d18-0510-35b0-a2fa-b4cea13a6d76/sensors"
# An image without depth, and depth without an image.
LONELY = {
    "argoverse2": (f"{_AV2}/cameras/ring_front_center/9.jpg", f"{_AV2}/lidar/300000000.feather"),
    "aria_synthetic": ("42/rgb/vignette0000099.jpg", "42/depth/depth0000098.png"),
    "arkitscenes": (
        "Training/40753679/lowres_wide/40753679_99.1.png",
        "Training/40753679/lowres_depth/40753679_98.1.png",
    ),
    "blendedmvs": (
        "5a3ca9cb270f0e3f14d0eddb/blended_images/00000099.jpg",
        "5a3ca9cb270f0e3f14d0eddb/rendered_depth_maps/00000098.pfm",
    ),
    "ddad": ("rgb/CAMERA_01/99.jpg", "point_cloud/LIDAR/98.npz"),
    "diode": (
        "train/indoors/scene_00000/scan_00000/99.png",
        "train/indoors/scene_00000/scan_00000/98_depth.npy",
    ),
    "eth3d": (
        "courtyard/images/dslr_images/99.JPG",
        "courtyard/ground_truth_depth/dslr_images/98.JPG",
    ),
    "foundationstereo": ("a/dataset/data/left/rgb/99.jpg", "a/dataset/data/left/disparity/98.png"),
    "hypersim": (
        "ai_001_001/images/scene_cam_00_final_hdf5/frame.0099.color.hdf5",
        "ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0098.depth_meters.hdf5",
    ),
    "kitti_depth": (
        f"{_KITTI}/image_02/data/0000000099.png",
        "train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000098.png",
    ),
    "kitti_raw": (
        f"{_KITTI}/image_02/data/0000000099.png",
        f"{_KITTI}/velodyne_points/data/0000000098.bin",
    ),
    "megadepth": ("0000/dense0/imgs/99.jpg", "0000/dense0/depths/98.h5"),
    "nyuv2": ("train/a/rgb_0099.png", "train/a/depth_0098.png"),
    "parallel_domain": ("rgb/camera3/99.png", "depth/camera3/98.npz"),
    "redwood": ("color/00099.png", "depth/00098.png"),
    "scannet": ("scans/scene0000_00/color/99.jpg", "scans/scene0000_00/depth/98.png"),
    "seven_scenes": ("chess/seq-01/frame-000099.color.png", "chess/seq-01/frame-000098.depth.png"),
    "sunrgbd": ("kv2/b/image/0002.jpg", "kv2/c/depth/0003_abs.png"),
    "tartanair": ("image_lcam_front/99_lcam_front.png", "depth_lcam_front/98_lcam_front_depth.png"),
    "taskonomy": (
        "rgb/allensville/point_9_view_9_domain_rgb.png",
        "depth_zbuffer/allensville/point_9_view_8_domain_depth_zbuffer.png",
    ),
    "tum": ("any/rgb/99.5.png", "any/depth/98.5.png"),
}


def test_every_reader_of_pairs_is_tried():
    assert {*LONELY, *ELSEWHERE} == set(PAIRS)


@pytest.mark.parametrize("name", LONELY)
def test_images_and_depth_without_each_other_are_counted(name: str, tmp_path: Path, monkeypatch):
    root = tmp_path / "set"
    tests, (image, depth) = write(name, root, monkeypatch), LONELY[name]
    if name == "argoverse2":  # whose images are twice as many as scans
        (root / image).with_name("315973157927214000.jpg").unlink()
    source = open_root(name, root)
    assert isinstance(source, Notes) and len(source) == 1
    first, known = source[0], source.notes()
    absent = [f"{root}: 1 of 4 files that scenes name are not there (rgb/CAMERA_05/1560.jpg)"]
    assert known == (absent if name == "ddad" else [])
    layouts.junk(root / image)
    layouts.junk(root / depth)
    match name:  # what else makes them frames of the set
        case "hypersim":
            rows = [f"ai_001_001,cam_00,{number},True,,train" for number in (7, 98, 99)]
            tests.lists(root, rows, {"ai_001_001": tests.TILTED})
        case "sunrgbd":
            layouts.text(root / "kv2/b/intrinsics.txt", "")
            layouts.text(root / "kv2/c/intrinsics.txt", "")
        case "tum":
            for path in map(root.joinpath, (image, depth)):
                with path.parent.with_suffix(".txt").open("a") as opened:
                    opened.write(f"\n{path.stem} {path.parent.name}/{path.name}\n")
    source = open_root(name, root)
    assert isinstance(source, Notes) and len(source) == 1 and same(source[0], first)
    total = 3 if name == "ddad" else 2  # it has two scanners
    assert source.notes() == [
        *known,
        f"{root}: 1 of 2 images have no depth ({image})",
        f"{root}: 1 of {total} files of depth have no image ({depth})",
    ]


@pytest.mark.parametrize("name", ["kitti_raw", "redwood", "scannet", "taskonomy"])
def test_set_without_a_pair_says_why(name: str, tmp_path: Path, monkeypatch):
    root = tmp_path / "set"
    write(name, root, monkeypatch)
    (root / LONELY[name][1]).parent.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"holds no frame of .*: 1 of 1 images have no depth"):
        open_root(name, root)
