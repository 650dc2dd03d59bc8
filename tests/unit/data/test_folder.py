"""A folder of images: both layouts, every optional part, and one line for every mistake."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.folder import ImageFolder
from modality_forcing.data.records import check
from modality_forcing.errors import UserError


def save_image(path: Path, size: tuple[int, int] = (12, 16), value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def depth(path: Path, size: tuple[int, int] = (12, 16), value: float = 2000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.full(size, value, np.float32))
    else:
        Image.fromarray(np.full(size, value, np.uint16)).save(path)
    return path


def folder(root: Path, **changes) -> ImageFolder:
    return ImageFolder(**{"root": root, "resolution": 8, "depth_scale": 0.001, **changes})


def test_folders_of_their_own(tmp_path: Path):
    save_image(tmp_path / "images/b.JPG", value=50)
    save_image(tmp_path / "images/a.png", value=70)
    save_image(tmp_path / "images/c.webp")
    depth(tmp_path / "depth/a.png", value=3000)
    depth(tmp_path / "depth/b.npy", value=4)  # meters, beside millimeters
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/a.txt").write_text("a gray\nwall \n", encoding="utf-8")
    source = folder(tmp_path, unit="metric")
    first, second, third = (check(source[i]) for i in range(len(source)))
    assert [first.id, second.id, third.id] == ["a", "b", "c"]
    assert first.caption == "a gray wall" and second.caption == third.caption == ""
    assert first.unit == "metric" and first.source == tmp_path.name
    assert first.image.shape == (8, 8, 3) and np.all(first.image == 70)
    np.testing.assert_allclose(first.depth, 3.0)
    np.testing.assert_allclose(second.depth, 4.0)
    assert first.valid.all() and not third.valid.any() and np.isnan(third.intrinsics).all()


def test_all_layouts_in_one_folder(tmp_path: Path):
    save_image(tmp_path / "one.jpeg")
    save_image(tmp_path / "two.v2.png")
    depth(tmp_path / "one.depth.png")
    depth(tmp_path / "two.v2.DEPTH.npy", value=2)
    (tmp_path / "one.txt").write_text("the first", encoding="utf-8-sig")
    (tmp_path / "notes.md").write_text("nothing to do with it")
    source = folder(tmp_path)
    assert [source[i].id for i in range(len(source))] == ["one", "two.v2"]
    assert source[0].caption == "the first" and source[0].valid.all() and source[1].valid.all()


def test_images_next_to_a_depth_folder(tmp_path: Path):
    save_image(tmp_path / "one.jpg")
    depth(tmp_path / "depth/one.png")
    assert folder(tmp_path)[0].valid.all()


def test_hidden_files_are_ignored(tmp_path: Path):
    save_image(tmp_path / "images/a.png")
    for name in ("images/._a.png", "images/.DS_Store", "depth/._a.npy", "depth/.gone.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert len(folder(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("captions.txt", "name\tcaption\na\tred wall\n\nb.png\tblue\twall\nelsewhere\tgreen\n"),
        ("captions.tsv", "a.png\tred wall\r\nb\tblue\twall\r\n"),
        ("captions.json", json.dumps({"a": "red wall", "b.png": "blue\twall"})),
    ],
)
def test_captions_in_one_file(tmp_path: Path, file: str, content: str):
    for name in "abc":
        save_image(tmp_path / f"images/{name}.png")
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert [folder(tmp_path)[i].caption for i in range(3)] == ["red wall", "blue\twall", ""]
    moved = tmp_path / "elsewhere" / file
    moved.parent.mkdir()
    (tmp_path / file).rename(moved)
    assert folder(tmp_path)[0].caption == ""
    assert folder(tmp_path, captions=moved)[0].caption == "red wall"


def test_intrinsics_follow_the_crop(tmp_path: Path):
    for name in "ab":
        save_image(tmp_path / f"images/{name}.png", size=(8, 16))
    one = {"fx": 20, "fy": 20, "cx": 7.5, "cy": 3.5}
    (tmp_path / "intrinsics.json").write_text(json.dumps(one))
    # Half the size: the center stays the center.
    middle = np.array([[10, 0, 1.5], [0, 10, 1.5], [0, 0, 1]], np.float32)
    np.testing.assert_allclose(folder(tmp_path, resolution=4)[1].intrinsics, middle)
    (tmp_path / "intrinsics.json").write_text(json.dumps({"b.png": one}))
    np.testing.assert_allclose(folder(tmp_path, resolution=4)[1].intrinsics, middle)
    assert np.isnan(folder(tmp_path, resolution=4)[0].intrinsics).all()
    # A copy of half the size has the same view: its intrinsics follow if it is stated what they
    # are for.
    save_image(tmp_path / "images/b.png", size=(4, 8))
    with pytest.raises(
        UserError, match=r"8 x 4 pixels, but intrinsics.json has its principal point"
    ):
        folder(tmp_path)[1]
    for more in ({"width": 16, "height": 8}, {"width": 160, "height": 80}):
        scaled = {key: value * more["width"] / 16 for key, value in one.items()}
        scaled |= {"cx": more["width"] / 2 - 0.5, "cy": more["height"] / 2 - 0.5, **more}
        (tmp_path / "intrinsics.json").write_text(json.dumps(scaled))
        np.testing.assert_allclose(folder(tmp_path, resolution=4)[1].intrinsics, middle)


@pytest.mark.parametrize("size", [(24, 32), (6, 8), (3, 4), (13, 17), (12, 16)])
def test_depth_of_another_size(tmp_path: Path, size: tuple[int, int]):
    save_image(tmp_path / "a.png")
    depth(tmp_path / "a.depth.png", size=size)
    record = check(folder(tmp_path)[0])
    assert record.valid.all() and np.allclose(record.depth, 2)


@pytest.mark.parametrize("size", [(16, 12), (12, 12), (24, 30), (120, 157)])
def test_depth_of_another_aspect(tmp_path: Path, size: tuple[int, int]):
    save_image(tmp_path / "a.png")
    path = depth(tmp_path / "a.depth.png", size=size)
    with pytest.raises(
        UserError, match=f"{size[1]} x {size[0]}, the upright image 16 x 12"
    ) as caught:
        folder(tmp_path)[0]
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def wrong(root: Path, reason: str, **changes) -> str:
    with pytest.raises(UserError, match=reason) as caught:
        folder(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    assert str(tmp_path / "no") in wrong(tmp_path / "no", "no such folder")
    assert "images/" in wrong(tmp_path, "no image in this folder")
    (tmp_path / "images").mkdir()
    wrong(tmp_path, "no image in this folder")


def test_depth_without_image(tmp_path: Path):
    save_image(tmp_path / "images/a.png")
    path = depth(tmp_path / "depth/b.png")
    assert str(path) in wrong(tmp_path, "no image is named b")


def test_duplicate_names(tmp_path: Path):
    save_image(tmp_path / "images/a.png")
    depth(tmp_path / "depth/a.npy")
    depth(tmp_path / "depth/a.png")
    wrong(tmp_path, "two depth maps named a")
    (tmp_path / "depth/a.png").unlink()
    save_image(tmp_path / "images/a.jpg")
    wrong(tmp_path, "two images named a")


def test_scales(tmp_path: Path):
    save_image(tmp_path / "images/a.png")
    depth(tmp_path / "depth/a.npy", value=2)
    np.testing.assert_allclose(folder(tmp_path, depth_scale=None)[0].depth, 2)
    wrong(tmp_path, "positive number", depth_scale=0.0)
    (tmp_path / "depth/a.npy").unlink()
    depth(tmp_path / "depth/a.png")
    wrong(tmp_path, "state depth_scale", depth_scale=None)
    wrong(tmp_path, "at least 1 pixel", resolution=0)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("captions.txt", b"a red wall\n", "line 1 has no tab"),
        ("captions.txt", b"x\tred wall\n", "names no image here"),
        ("captions.txt", b"a\t\xff\xfe\n", "not text in UTF-8"),
        ("captions.json", b"[1]", "not an object of captions"),
        ("captions.json", b'{"a": 3}', "not an object of captions"),
        ("captions.json", b"{", "not valid JSON"),
        ("captions.json", b"[" * 100_000, "not valid JSON"),
        ("intrinsics.json", b"[]", "not an object"),
        ("intrinsics.json", b'{"fx": 1, "fy": 1, "cx": 0}', "one of fx fy cx cy"),
        ("intrinsics.json", b'{"a": 5}', "one of fx fy cx cy"),
        (
            "intrinsics.json",
            b'{"fx": 1, "fy": 1, "cx": 0, "cy": 0, "width": 0, "height": 1}',
            "without pixels",
        ),
        ("intrinsics.json", b'{"fx": 0, "fy": 1, "cx": 0, "cy": 0}', "not positive"),
        ("intrinsics.json", b'{"fx": 1e300, "fy": 1, "cx": 0, "cy": 0}', "a number beyond 1e\\+09"),
        ("intrinsics.json", b'{"fx": true, "fy": 1, "cx": 0, "cy": 0}', "True is not a number"),
    ],
)
def test_wrong_lists(tmp_path: Path, file: str, content: bytes, reason: str):
    save_image(tmp_path / "a.png")
    (tmp_path / file).write_bytes(content)
    assert str(tmp_path / file) in wrong(tmp_path, reason)


def test_two_lists_of_captions(tmp_path: Path):
    save_image(tmp_path / "a.png")
    for file in ("captions.txt", "captions.tsv"):
        (tmp_path / file).write_text("a\tred\n")
    wrong(tmp_path, "captions in captions.txt and in captions.tsv")
    wrong(tmp_path, "no such file", captions=tmp_path / "none.txt")


def test_copies_and_their_name_are_the_same(tmp_path: Path):
    save_image(tmp_path / "a.png")
    source = folder(tmp_path)
    assert copy.deepcopy(source) == source and repr(copy.deepcopy(source)) == repr(source)
    assert "_entries" not in repr(source) and "depth_scale=0.001" in repr(source)


def test_names_captions_and_intrinsics_match_in_one_form(tmp_path: Path):
    save_image(tmp_path / "images/cafe\u0301.png")
    save_image(tmp_path / "images/dog.png")
    (tmp_path / "captions.txt").write_text("caf\u00e9\ta cafe\ndog\tone\ndog.png\ttwo\n")
    one = {"fx": 20, "fy": 20, "cx": 7.5, "cy": 5.5}
    (tmp_path / "intrinsics.json").write_text(json.dumps({"caf\u00e9": one, "Dog": one}))
    source = folder(tmp_path)
    cafe, dog = source[0], source[1]
    assert cafe.caption == "a cafe" and np.isfinite(cafe.intrinsics).all()
    assert (dog.caption, dog.other_captions) == ("one", ("two",)) and np.isnan(dog.intrinsics).all()
    (note,) = source.notes()
    assert note.endswith("intrinsics.json: 1 of 2 name no image here (Dog)")
    (tmp_path / "intrinsics.json").write_text(json.dumps({"Dog": one}))
    wrong(tmp_path, "names no image here .first 'Dog'")


def test_depth_that_cannot_be_used_is_an_error_of_its_image(tmp_path: Path):
    for name in "abc":
        save_image(tmp_path / f"images/{name}.png")
    depth(tmp_path / "depth/a.png")
    (tmp_path / "depth/b.tif").touch()
    (tmp_path / "depth/c.png").symlink_to("nowhere")
    source = folder(tmp_path)
    assert source[0].valid.all()
    for index, reason in [(1, r"b\.tif: depth in a \.tif file"), (2, r"c\.png: no such file")]:
        with pytest.raises(UserError, match=reason):
            source[index]


def test_scale_of_floats_alone_is_refused(tmp_path: Path):
    save_image(tmp_path / "images/a.png")
    depth(tmp_path / "depth/a.npy", value=2)
    wrong(tmp_path, "depth_scale is for 16-bit PNG and integers")
    save_image(tmp_path / "images/b.png")
    depth(tmp_path / "depth/b.png", value=2000)
    source = folder(tmp_path)
    np.testing.assert_allclose([source[0].depth, source[1].depth], 2)
    assert "floats of .npy are depth already" in source.notes()[0]


def test_name_that_is_not_utf8_is_escaped(tmp_path: Path):
    save_image(tmp_path / os.fsdecode(b"caf\xe9.png"))
    source = folder(tmp_path)
    assert check(source[0]).id == "caf\\xe9" and "1 names are not UTF-8" in source.notes()[0]
