"""Shared parts of the readers: records, listings, tables, timestamps, resampling."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data import resize
from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.records import Record, check
from modality_forcing.datasets.common import lazy
from modality_forcing.datasets.common.lazy import DatasetInfo, LazySource, make_record
from modality_forcing.errors import UserError
from tests import layouts

IMAGE = np.zeros((2, 3, 3), np.uint8)
K = pinhole(10, 20, 1, 0.5)


def test_only_finite_positive_valid_depth_is_kept(tmp_path: Path):
    depth = np.array([[1, 0, -1], [np.inf, np.nan, 1e300]])
    record = check(
        make_record(
            DatasetInfo("x", "sfm", tmp_path), tmp_path / "a/b.c.png", IMAGE, depth, intrinsics=K
        )
    )
    np.testing.assert_array_equal(record.depth, [[1, 0, 0], [0, 0, 0]])
    assert (record.id, record.source, record.unit, record.caption) == ("a/b.c", "x", "sfm", "")
    np.testing.assert_array_equal(record.intrinsics, [[10, 0, 1], [0, 20, 0.5], [0, 0, 1]])
    depth = np.array([[1, 2, 3], [4, 5, 6]])
    record = check(
        make_record(
            DatasetInfo("x", "sfm", tmp_path), tmp_path / "a.png", IMAGE, depth, valid=depth > 3
        )
    )
    np.testing.assert_array_equal(record.depth, [[0, 0, 0], [4, 5, 6]])
    assert np.isnan(record.intrinsics).all()


def test_names_that_are_not_utf8_are_escaped_in_ids(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"r\xe9d/b.png")
    made = make_record(DatasetInfo("x", "sfm", tmp_path), path, IMAGE, np.ones((2, 3)))
    assert check(made).id == r"r\xe9d/b"


@pytest.mark.parametrize(
    ("depth", "valid", "intrinsics", "message"),
    [
        (np.ones((3, 2)), None, None, "image is 3 x 2 pixels and its depth 2 x 3"),
        (np.ones((2, 3)), np.ones((3, 2), bool), None, "image is 3 x 2"),
        (np.zeros((2, 3)), None, None, "its depth has no valid pixel"),
        (np.ones((2, 3)), np.zeros((2, 3), bool), None, "its depth has no valid pixel"),
        (np.ones((2, 3)), None, np.full((3, 3), np.inf), "intrinsics are not those of a camera"),
        (np.ones((2, 3)), None, np.zeros((3, 3)), "intrinsics are not those of a camera"),
    ],
)
def test_invalid_arrays_are_reported(tmp_path: Path, depth, valid, intrinsics, message: str):
    with pytest.raises(UserError, match=f"a.png: .*{message}"):
        make_record(
            DatasetInfo("x", "metric", tmp_path),
            tmp_path / "a.png",
            IMAGE,
            depth,
            valid=valid,
            intrinsics=intrinsics,
        )


def test_frames_are_read_lazily():
    read = []

    def record(name: str) -> Record:
        read.append(name)
        depth = np.ones((2, 2), np.float32)
        path = Path(name)
        return make_record(
            DatasetInfo("x", "metric", Path()), path, np.zeros((2, 2, 3), np.uint8), depth
        )

    source = LazySource(("a", "b"), record)
    assert len(source) == 2 and read == []
    assert source[1].id == "b" and read == ["b"]


def test_listings_have_no_hidden_files(tmp_path: Path):
    for name in ("b.png", "a.png", "._a.png", ".git/c.png", "d/e.png"):
        layouts.text(tmp_path / name, "")
    assert lazy.glob_paths(tmp_path, "**/*.png") == [
        tmp_path / name for name in ("a.png", "b.png", "d/e.png")
    ]
    assert lazy.glob_paths(tmp_path / "absent", "*.png") == []


def test_hidden_folder_above_the_root_hides_nothing(tmp_path: Path):
    layouts.text(tmp_path / ".cache/set/a.png", "")
    assert len(lazy.glob_paths(tmp_path / ".cache/set", "*.png")) == 1


def test_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch):
    layouts.text(tmp_path / "a/x.png", "")
    layouts.text(tmp_path / "b/x.png", "")
    listed = Path.iterdir

    def refuse(path: Path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for pattern in ("*/*.png", "**/*.png"):
        with pytest.raises(UserError, match="b: cannot be listed"):
            lazy.glob_paths(tmp_path, pattern)


def test_dangling_link_counts_as_a_file(tmp_path: Path):
    (tmp_path / "link.png").symlink_to("gone.png")
    assert lazy.is_there(tmp_path / "link.png") and not lazy.is_there(tmp_path / "gone.png")
    assert lazy.first_file([tmp_path / "gone.png", tmp_path / "link.png"]) == tmp_path / "link.png"


def test_name_lists_are_read(tmp_path: Path):
    layouts.text(tmp_path / "second.txt", "b\n\n a \n")
    assert lazy.read_split_list(tmp_path, ["first.txt", "second.txt"], "X", "from there") == [
        "b",
        "a",
    ]
    with pytest.raises(
        UserError, match=r"no first.txt, the list of this split of X; put it there: from there"
    ):
        lazy.read_split_list(tmp_path, ["first.txt"], "X", "from there")
    layouts.text(tmp_path / "first.txt", "\n")
    with pytest.raises(UserError, match=r"first.txt: names nothing"):
        lazy.read_split_list(tmp_path, ["first.txt"], "X", "from there")


def test_tables_are_read(tmp_path: Path):
    path = layouts.text(tmp_path / "t.csv", 'id,"x y"\n1,"2, 3"\n4,5\n')
    assert lazy.read_csv(path, ("x y",), "there") == [
        {"id": "1", "x y": "2, 3"},
        {"id": "4", "x y": "5"},
    ]
    for content, message in (
        ("id\n1\n", "no column x"),
        ("id,x\n", "no column id"),
        ("id,x\n1,2\n3\n", "line 3 is cut short"),
        ("id,x,x\n1,2,3\n", "is not a table: column 'x' is there 2 times"),
    ):
        layouts.text(path, content)
        with pytest.raises(UserError, match=f"t.csv: .*{message}"):
            lazy.read_csv(path, ("id", "x"), "there")
    with pytest.raises(UserError, match="no such file; put it there: of them"):
        lazy.read_csv(tmp_path / "absent.csv", ("id",), "of them")


def test_timestamps_closest_in_time_are_paired_first():
    ours, theirs = [0.0, 1.0, 1.015, 2.0], [0.012, 1.012, 1.9, 2.5]
    # 1.0 is near 1.012 too, but 1.015 is nearer, and 1.9 is too far from 2.0.
    assert lazy.nearest_in_time(ours, theirs, 0.02) == [(0, 0), (2, 1)]
    assert lazy.nearest_in_time(ours, theirs, 0.2) == [(0, 0), (2, 1), (3, 2)]
    assert lazy.nearest_in_time([], theirs, 1) == []


def test_coarse_depth_is_scattered_to_single_pixels():
    depth = np.array([[1, 2], [3, 0]], np.float32)
    finer = lazy.upsample_sparse(depth, (6, 4))
    assert finer.dtype == np.float32 and np.count_nonzero(finer) == 3
    assert (finer[1, 1], finer[1, 3], finer[4, 1]) == (1, 2, 3)
    np.testing.assert_array_equal(lazy.upsample_sparse(depth, (2, 2)), depth)
    with pytest.raises(ValueError, match="raster"):
        lazy.upsample_sparse(depth, (1, 4))


def test_rescaled_intrinsics_see_the_same_rays():
    other = resize.scale_intrinsics(K, (4, 6), (8, 3))
    # The left edge of the image, x = -0.5, stays the left edge, and so does the right one.
    for edge, moved in ((-0.5, -0.5), (5.5, 2.5)):
        np.testing.assert_allclose((edge - K[0, 2]) / K[0, 0], (moved - other[0, 2]) / other[0, 0])
    for edge, moved in ((-0.5, -0.5), (3.5, 7.5)):
        np.testing.assert_allclose((edge - K[1, 2]) / K[1, 1], (moved - other[1, 2]) / other[1, 1])


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
def test_intrinsics_of_rotated_images_keep_the_rays(quarters: int):
    depth = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    image = np.repeat(depth[..., None], 3, axis=2).astype(np.uint8)
    turned, turned_depth, turned_k = lazy.rot90(image, depth, K, quarters)
    np.testing.assert_array_equal(turned, np.rot90(image, quarters))
    np.testing.assert_array_equal(turned_depth, np.rot90(depth, quarters))
    for value in range(1, 7):
        row, column = np.argwhere(depth == value)[0]
        new_row, new_column = np.argwhere(turned_depth == value)[0]
        x, y, _ = np.linalg.inv(K) @ [column, row, 1]
        new_x, new_y, _ = np.linalg.inv(turned_k) @ [new_column, new_row, 1]
        for _ in range(quarters % 4):  # counterclockwise: right goes up
            x, y = y, -x
        np.testing.assert_allclose([new_x, new_y], [x, y], atol=1e-12)


def test_images_are_downscaled_with_antialiasing():
    stripes = np.zeros((4, 8, 3), np.uint8)
    stripes[:, ::2] = 255
    assert 100 < resize.downscale_image(stripes, (2, 4)).mean() < 155
    assert resize.downscale_image(stripes, (4, 8)) is stripes


def test_folders_behind_links_are_listed_once(tmp_path: Path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "b", elsewhere):
        folder.mkdir(parents=True)
        (folder / "x.tar").touch()
    (root / "a").symlink_to("b")
    (root / "c").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(root)
    (root / "gone").symlink_to("nowhere")
    assert lazy.glob_paths(root, "**/*.tar") == [root / "b/x.tar", root / "c/x.tar"]
