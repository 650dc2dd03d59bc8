"""Uploaded files that are refused before they are unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.app import uploads
from modality_forcing.errors import UserError
from modality_forcing.exr_io import depth_bytes


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    colors = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(colors).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_images_pass_as_does_what_is_none(photo):
    uploads.check_image(photo)
    photo.write_text("no image")
    uploads.check_image(photo)  # who reads it refuses it


def test_too_many_pixels_are_refused(photo, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match=r"photo.png: has 40 x 30 pixels; scale it down"):
        uploads.check_image(photo)
    np.save(photo.with_name("depth.npy"), np.ones((40, 30), np.float32))
    with pytest.raises(UserError, match=r"depth.npy: has 30 x 40 pixels"):
        uploads.read_map(photo.with_name("depth.npy"))


def test_bomb_beyond_the_limit_of_pillow_is_refused(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match=r"photo.png: has too many pixels; scale it down"):
        uploads.check_image(photo)


def test_photos_of_phones_are_measured_too(photo, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    path = photo.with_name("photo.HEIC")
    with Image.open(photo) as opened:
        heif.from_pillow(opened).save(path)
    uploads.check_image(path)
    monkeypatch.setattr(uploads, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match=r"photo.HEIC: has 40 x 30 pixels"):
        uploads.check_image(path)


def test_formats_that_run_programs_are_not_opened(photo):
    trojan = photo.with_name("photo.jpg")
    with Image.open(photo) as opened:
        opened.save(trojan, "EPS")
    with pytest.raises(UserError, match=r"photo.jpg: is an image of the format EPS; upload one"):
        uploads.check_image(trojan)
    trojan.rename(photo.with_name("depth.png"))
    with pytest.raises(UserError, match=r"depth.png: is an image of the format EPS"):
        uploads.read_map(photo.with_name("depth.png"))


def test_depth_of_renderers_is_measured_before_it_is_unpacked(tmp_path, monkeypatch):
    pytest.importorskip("OpenEXR")
    depth = np.full((30, 40), 2, np.float32)
    depth[0] = 0
    (tmp_path / "depth.exr").write_bytes(depth_bytes(depth, "depth.exr"))
    np.testing.assert_array_equal(uploads.read_map(tmp_path / "depth.exr"), depth)
    monkeypatch.setattr(uploads, "MAX_PIXELS", 299)  # 1200 numbers are above four of each
    monkeypatch.setattr(uploads, "read_depth", None)
    with pytest.raises(UserError, match=r"depth.exr: has too many pixels; scale it down"):
        uploads.read_map(tmp_path / "depth.exr")


@pytest.mark.parametrize(
    ("name", "message"),
    [("depth.txt", "depth in a .txt file"), ("photo.png", "is a color .* image, not 16-bit depth")],
)
def test_what_is_no_depth_map_is_refused(photo, name, message):
    photo.with_name("depth.txt").write_text("1 2 3")
    with pytest.raises(UserError, match=message):
        uploads.read_map(photo.with_name(name))
