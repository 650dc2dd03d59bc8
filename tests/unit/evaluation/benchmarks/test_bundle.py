"""MoGe's bundles: frames in the codec's bytes, and one error line per damaged file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.bundle import Bundle, find_bundle
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS

CODES = np.array([[0, 1, 65535], [65534, 32767, 2]], np.uint16)
NEAR, FAR = 0.5, 80.0
CAMERA = [[0.8, 0, 0.51], [0, 1.1, 0.49], [0, 0, 1]]
IMAGE = np.full((2, 3, 3), 128, np.uint8)


def write_depth(path: Path, codes: np.ndarray, **more: str) -> None:
    chunks = PngImagePlugin.PngInfo()
    for name, value in {"near": str(NEAR), "far": str(FAR), **more}.items():
        chunks.add_text(name, value)
    Image.fromarray(codes).save(path, pnginfo=chunks)


def write_frame(folder: Path, file_name: str = "image.jpg") -> None:
    folder.mkdir(parents=True)
    Image.fromarray(IMAGE).save(folder / file_name)
    write_depth(folder / "depth.png", CODES)
    (folder / "meta.json").write_text(json.dumps({"intrinsics": CAMERA, "more": 1}))


def opened(root: Path) -> Bundle:
    (root / ".index.txt").write_text("val/a\n")
    bundle = find_bundle(BENCHMARKS["diode"], root)
    assert bundle
    return bundle


@pytest.mark.parametrize("file_name", ["image.jpg", "image.png"])
def test_frame_is_decoded_exactly(tmp_path: Path, file_name: str):
    write_frame(tmp_path / "val" / "a", file_name)
    frame = opened(tmp_path).read("val/a")
    np.testing.assert_array_equal(frame.valid, [[False, True, False], [True, True, True]])
    u = (np.array([32767, 2]) - 1) / 65533
    between = NEAR ** (1 - u) * FAR**u
    np.testing.assert_allclose(frame.depth, [[0, NEAR, 0], [FAR, *between]], rtol=1e-6)
    assert frame.depth.dtype == np.float32 and frame.name == "val/a"
    np.testing.assert_array_equal(frame.image, IMAGE)
    np.testing.assert_array_equal(frame.intrinsics, np.array(CAMERA, np.float32))


def test_unit_of_older_bundles_is_applied(tmp_path: Path):
    write_frame(tmp_path / "val" / "a")
    write_depth(tmp_path / "val" / "a" / "depth.png", CODES, unit="0.25")
    frame = opened(tmp_path).read("val/a")
    np.testing.assert_allclose(frame.depth[0], [0, NEAR / 4, 0], rtol=1e-6)


def test_nyuv2_takes_its_test_split_first(tmp_path: Path):
    (tmp_path / ".index.txt").write_text("all\n")
    nyuv2 = BENCHMARKS["nyuv2"]
    assert (bundle := find_bundle(nyuv2, tmp_path)) and bundle.names() == ("all",)
    (tmp_path / ".test.txt").write_text("test\n")
    assert (bundle := find_bundle(nyuv2, tmp_path)) and bundle.names() == ("test",)
    assert (bundle := find_bundle(BENCHMARKS["kitti"], tmp_path)) and bundle.names() == ("all",)


def test_bundle_is_found_in_its_own_folder(tmp_path: Path):
    assert find_bundle(BENCHMARKS["ibims1"], tmp_path) is None
    (tmp_path / "iBims-1").mkdir()
    (tmp_path / "iBims-1" / ".index.txt").write_text("a/é\r\nb\u2028c\n\n")
    bundle = find_bundle(BENCHMARKS["ibims1"], tmp_path)
    assert bundle and bundle.names() == ("a/é", "b\u2028c") and bundle.num_expected == 100
    assert bundle.files("a/é")["depth"] == tmp_path / "iBims-1" / "a" / "é" / "depth.png"
    assert find_bundle(replace(BENCHMARKS["ibims1"], folder="x"), tmp_path) is None


@pytest.mark.parametrize(
    ("index", "value"),
    [(b"\n", "no frames"), (b"a\nb\na\n", "twice"), (b"\xff\xfe", "not text in UTF-8")],
)
def test_invalid_index_is_refused(tmp_path: Path, index: bytes, value: str):
    (tmp_path / ".index.txt").write_bytes(index)
    with pytest.raises(UserError, match=value) as caught:
        Bundle(tmp_path / ".index.txt", None).names()
    assert str(caught.value).startswith(str(tmp_path / ".index.txt"))


META = {
    "empty": "",
    "no object": "[1]",
    "cut": '{"intrinsics": [[0.8,',
    "none": "{}",
    "eight numbers": json.dumps({"intrinsics": CAMERA[:2]}),
    "ragged": '{"intrinsics": [[1, 2], [3]]}',
    "text": json.dumps({"intrinsics": [["a"] * 3] * 3}),
    "not finite": json.dumps({"intrinsics": [[float("nan"), 0, 0.5], *CAMERA[1:]]}),
    "no focal length": json.dumps({"intrinsics": [[0, 0, 0.5], *CAMERA[1:]]}),
}


@pytest.mark.parametrize("meta", META.values(), ids=META.keys())
def test_invalid_intrinsics_are_refused(tmp_path: Path, meta: str):
    write_frame(tmp_path / "val" / "a")
    path = tmp_path / "val" / "a" / "meta.json"
    path.write_text(meta)
    with pytest.raises(UserError) as caught:
        opened(tmp_path).read("val/a")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_depth_of_another_size_is_refused(tmp_path: Path):
    write_frame(tmp_path / "val" / "a")
    path = tmp_path / "val" / "a" / "depth.png"
    write_depth(path, CODES[:, :2])
    with pytest.raises(
        UserError, match=r"is 2 x 2 pixels, but its image image\.jpg 3 x 2"
    ) as caught:
        opened(tmp_path).read("val/a")
    assert str(caught.value).startswith(f"{path}: ")


def test_damaged_depth_map_is_refused(tmp_path: Path):
    write_frame(tmp_path / "val" / "a")
    path = tmp_path / "val" / "a" / "depth.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        opened(tmp_path).read("val/a")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
