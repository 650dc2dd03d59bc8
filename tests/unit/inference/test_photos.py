"""Listing and reading of photographs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.inference.photos import PHOTO_SUFFIXES, find_items, read_photo

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(root: Path, *named: str, skip: Path | None = None) -> list[str]:
    items = find_items([root / name for name in named], PHOTO_SUFFIXES, "--image", skip)
    return [f"{item.path.relative_to(root)} > {item.name}" for item in items]


def test_folders_are_listed_with_all_below(tmp_path: Path):
    touch(tmp_path, "in/b.jpg", "in/a.PNG", "in/notes.txt", "in/sub/é ü.webp", "in/.hidden.jpg")
    touch(tmp_path, "in/out/b_color.png")
    assert names(tmp_path, "in", skip=tmp_path / "in/out") == [
        "in/a.PNG > a",
        "in/b.jpg > b",
        "in/sub/é ü.webp > sub/é ü",
    ]


def test_links_are_followed_once(tmp_path: Path):
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg", "other/c.jpg")
    (tmp_path / "in/again.jpg").symlink_to("a.jpg")
    (tmp_path / "in/sub/up").symlink_to("..")
    (tmp_path / "in/linked").symlink_to(tmp_path / "other")
    (tmp_path / "in/nothing.jpg").symlink_to("none.jpg")
    assert names(tmp_path, "in", "in/a.jpg") == [
        "in/a.jpg > a",
        "in/linked/c.jpg > linked/c",
        "in/nothing.jpg > nothing",
        "in/sub/b.jpg > sub/b",
    ]


def test_a_file_gives_the_name_of_links_to_it_and_a_loop_is_no_end(tmp_path: Path):
    touch(tmp_path, "in/ok.jpg", "in/ok.png")
    (tmp_path / "in/a.jpg").symlink_to("ok.jpg")
    (tmp_path / "in/x.jpg").symlink_to("x.jpg")
    found = ["in/ok.jpg > ok_jpg", "in/ok.png > ok_png", "in/x.jpg > x"]
    assert names(tmp_path, "in") == names(tmp_path, "in/*") == found
    assert names(tmp_path, "in/a.jpg", "in/ok.jpg") == ["in/ok.jpg > ok"]


def test_inputs_inside_the_results_are_named(tmp_path: Path):
    touch(tmp_path, "in/a.jpg")
    message = "in: is also --out; results are not inputs; choose another folder"
    with pytest.raises(UserError, match=message):
        names(tmp_path, "in", skip=tmp_path / "in")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg > a"]),
        ("x/?.*", ["x/b.jpg > b", "x/c.png > c"]),
        ("**/*.jpg", ["a.jpg > a", "x/b.jpg > x/b", "x/y/d.jpg > x/y/d"]),
        ("**", ["a.jpg > a", "x/b.jpg > x/b", "x/c.png > x/c", "x/y/d.jpg > x/y/d"]),
        ("x/[!b].png", ["x/c.png > c"]),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, expected: list[str]):
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/c.png", "x/y/d.jpg", "x/text.txt", ".h/e.jpg")
    assert sorted(names(tmp_path, pattern)) == expected


def test_names_of_outputs_differ(tmp_path: Path):
    touch(tmp_path, "1/a.jpg", "1/a.png", "1/b.jpg", "2/B.JPG", "2/c[1].png")
    assert names(tmp_path, "1", "2", "2/c[1].png") == [
        "1/a.jpg > a_jpg",
        "1/a.png > a_png",
        "1/b.jpg > b_jpg",
        "2/B.JPG > B_JPG_2",
        "2/c[1].png > c[1]",
    ]


def test_what_names_nothing_is_one_line(tmp_path: Path):
    touch(tmp_path, "in/notes.txt", "a.txt")
    for named, message in (
        ("in", "in: no file to work on; known kinds are .jpg .jpeg .png"),
        ("in/*.jpg", r"\*.jpg: no file to work on"),
        ("none.jpg", "none.jpg: no such file; check --image"),
    ):
        with pytest.raises(UserError, match=message):
            names(tmp_path, named)
    assert names(tmp_path, "a.txt") == ["a.txt > a"]  # named by itself


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_with_their_field_of_view(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8769] = {0xA405: 28}
    Image.fromarray(RGB).save(tmp_path / "photo.png", exif=exif)
    photo = read_photo(tmp_path / "photo.png")
    assert photo.image.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
    # 28 mm on 36 x 24 mm film sees 65.5 degrees across 36 mm.
    assert photo.fov == pytest.approx(65.47, abs=0.01)


def test_photos_without_a_focal_length(tmp_path: Path):
    for focal in (0, None):
        exif = Image.Exif()
        if focal is not None:
            exif[0x8769] = {0xA405: focal}
        Image.fromarray(RGB).save(tmp_path / "photo.jpg", exif=exif)
        assert read_photo(tmp_path / "photo.jpg").fov is None


def test_heif(tmp_path: Path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(np.full((64, 96, 3), 200, np.uint8))).save(tmp_path / "p.HEIC")
    photo = read_photo(tmp_path / "p.HEIC")
    assert photo.image.shape == (64, 96, 3) and abs(photo.image.mean() - 200) < 3
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package pillow-heif; pip install"):
        read_photo(tmp_path / "p.HEIC")


def test_folders_may_have_names_that_are_not_unicode(tmp_path: Path):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    touch(Path(os.fsdecode(folder)), "a.jpg")
    assert len(find_items([tmp_path], PHOTO_SUFFIXES, "--image")) == 1
