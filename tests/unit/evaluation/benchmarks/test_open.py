"""Opening a benchmark: the layout, the complete set or an error, and user lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks import native_layouts, registry
from modality_forcing.evaluation.benchmarks.open import open_benchmark
from tests.log_depth import write_log_depth

SCANNET = ("scene0406_02/000300", "scene0406_02/000100", "scene0011_00/000000")
META = '{"intrinsics": [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]}'


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch):
    """Sets of three images, so that a fixture can be complete."""
    small = {
        name: replace(
            benchmark,
            num_images=benchmark.num_images and 3,
            num_bundle_images=benchmark.num_bundle_images and 3,
        )
        for name, benchmark in registry.BENCHMARKS.items()
    }
    monkeypatch.setattr(registry, "BENCHMARKS", small)
    monkeypatch.setattr(native_layouts, "official_names", lambda name: {"scannet": SCANNET}[name])


def write_native(root: Path) -> Path:
    for place, frame in enumerate(SCANNET):
        scene, number = frame.split("/")
        for part in ("color", "depth"):
            (root / scene / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 4, 3), 50, np.uint8)).save(
            root / scene / "color" / f"{number}.jpg"
        )
        Image.fromarray(np.full((3, 4), 1000 + place, np.uint16)).save(
            root / scene / "depth" / f"{number}.png"
        )
    return root


def write_bundle(root: Path, frames: tuple[str, ...] = ("c", "x/a", "b")) -> Path:
    for place, frame in enumerate(frames):
        folder = root / frame
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 4, 3), 50, np.uint8)).save(folder / "image.jpg")
        write_log_depth(folder / "depth.png", np.full((3, 4), 1 + place, np.float32))
        (folder / "meta.json").write_text(META)
    (root / ".index.txt").write_text("\n".join(frames))
    return root


def message(caught: pytest.ExceptionInfo[UserError], where: Path) -> str:
    text = str(caught.value)
    assert text.startswith(f"{where}: ") and "; " in text and "\n" not in text
    return text


def test_native_layout_keeps_the_order_of_its_list(tmp_path: Path):
    opened = open_benchmark("scannet", write_native(tmp_path))
    assert (opened.layout, opened.official_list, opened.names, len(opened)) == (
        "native",
        True,
        SCANNET,
        3,
    )
    assert opened.benchmark.title == "ScanNet"
    assert [(frame.name, float(frame.depth[0, 0])) for frame in (opened[2], opened[0])] == [
        (SCANNET[2], pytest.approx(1.002)),
        (SCANNET[0], pytest.approx(1.0)),
    ]


@pytest.mark.parametrize("inner", ["", "ScanNet"])
def test_bundle_keeps_the_order_of_its_index(tmp_path: Path, inner: str):
    write_bundle(tmp_path / inner)
    opened = open_benchmark("scannet", str(tmp_path))
    assert (opened.layout, opened.official_list, opened.names) == (
        "bundle",
        True,
        ("c", "x/a", "b"),
    )
    assert [float(frame.depth[2, 3]) for frame in opened] == [1, 2, 3]


def test_frames_are_read_lazily(tmp_path: Path):
    (write_bundle(tmp_path) / "x" / "a" / "depth.png").write_bytes(b"damaged")
    opened = open_benchmark("scannet", tmp_path)
    assert opened[0].valid.all()
    with pytest.raises(UserError, match=r"depth\.png"):
        opened[1]


def test_user_frame_list_is_not_official(tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text(f"{SCANNET[1]}\n")
    opened = open_benchmark("scannet", write_native(tmp_path / "set"), names)
    assert (opened.official_list, opened.names) == (False, SCANNET[1:2])
    names.write_text("b\nc\n")
    opened = open_benchmark("scannet", write_bundle(tmp_path / "bundle"), str(names))
    assert (opened.official_list, [float(opened[i].depth[0, 0]) for i in range(2)]) == (
        False,
        [3, 1],
    )


def test_unknown_frame_names_are_refused(tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("b\nnone\n")
    with pytest.raises(
        UserError, match=r"files of 1 of 2 images are missing, the first is .*none"
    ) as caught:
        open_benchmark("scannet", write_bundle(tmp_path / "set"), names)
    message(caught, tmp_path / "set")


@pytest.mark.parametrize("lost", ["color/000300.jpg", "depth/000300.png"])
def test_missing_file_is_an_error(tmp_path: Path, lost: str):
    path = write_native(tmp_path) / "scene0406_02" / lost
    path.unlink()
    (tmp_path / "scene0011_00/depth/000000.png").unlink()
    with pytest.raises(UserError) as caught:
        open_benchmark("scannet", tmp_path)
    assert f"files of 2 of 3 images are missing, the first is {path}" in message(caught, tmp_path)


@pytest.mark.parametrize("lost", ["image.jpg", "depth.png", "meta.json"])
def test_missing_file_of_a_bundle_is_an_error(tmp_path: Path, lost: str):
    path = write_bundle(tmp_path) / "x" / "a" / lost
    path.unlink()
    with pytest.raises(UserError) as caught:
        open_benchmark("ddad", tmp_path)
    assert f"files of 1 of 3 images are missing, the first is {path}" in message(caught, tmp_path)


def test_index_of_another_length_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="Sintel has 3 images, but 2 are listed here") as caught:
        open_benchmark("sintel", write_bundle(tmp_path, ("a", "b")))
    message(caught, tmp_path)
    # No published count: the index defines the set.
    assert len(open_benchmark("spring", tmp_path)) == 2


def test_packaged_list_of_another_length_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native_layouts, "official_names", lambda _: SCANNET[:2])
    with pytest.raises(UserError, match="ScanNet has 3 images, but 2"):
        open_benchmark("scannet", write_native(tmp_path))


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path):
    write_bundle(write_native(tmp_path) / "ScanNet")
    with pytest.raises(UserError, match=r"ScanNet/.index.txt.*scene\?\?\?\?_\?\?/color") as caught:
        open_benchmark("scannet", tmp_path)
    message(caught, tmp_path)


def test_folder_without_layout_is_refused(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        open_benchmark("nyuv2", tmp_path)
    text = message(caught, tmp_path)
    assert all(
        part in text
        for part in (".test.txt", "NYUv2/.index.txt", "test/*/rgb_*.png", ".mat is not read")
    )
    with pytest.raises(
        UserError, match=r"contains no .index.txt, HAMMER/.index.txt of MoGe's bundle; "
    ) as caught:
        open_benchmark("hammer", tmp_path)
    message(caught, tmp_path)


def test_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder") as caught:
        open_benchmark("kitti", tmp_path / "none")
    message(caught, tmp_path / "none")


def test_unknown_benchmark_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean scannet"):
        open_benchmark("scanet", tmp_path)
