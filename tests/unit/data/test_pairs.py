"""Pairs: depth follows its image whatever the EXIF tags say, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data import pairs
from modality_forcing.data.files import DepthFormat
from modality_forcing.data.pairs import Pair, read_pair
from modality_forcing.errors import UserError

MILLIMETERS = DepthFormat(0.001)


def save(path: Path, array: np.ndarray, tag: int | None) -> Path:
    exif = Image.Exif()
    if tag:
        exif[0x0112] = tag
    Image.fromarray(array).save(path, exif=exif)
    return path


def write(
    folder: Path, size: tuple[int, int], image_tag: int | None, depth_tag: int | None
) -> Pair:
    """A scene whose depth in meters is its red channel / 50: 1 to 4 by quadrant."""
    quadrants = np.repeat(np.repeat([[1, 2], [3, 4]], size[0] // 2, 0), size[1] // 2, 1)
    image = np.repeat((quadrants * 50).astype(np.uint8)[..., None], 3, axis=2)
    depth = (quadrants * 1000).astype(np.uint16)
    return Pair(
        save(folder / "a.png", image, image_tag), save(folder / "a.depth.png", depth, depth_tag)
    )


@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
@pytest.mark.parametrize("tag", range(1, 9))
def test_pair_with_equal_tags_stays_aligned(tmp_path: Path, tag: int, size: tuple[int, int]):
    image, depth, valid = read_pair(write(tmp_path, size, tag, tag), MILLIMETERS, "")
    assert valid.all()
    np.testing.assert_allclose(depth, image[..., 0] / 50)


@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
@pytest.mark.parametrize(("image_tag", "depth_tag"), [(3, None), (None, 3), (2, 4), (6, 8)])
def test_unequal_tags_are_refused_unless_stated(
    tmp_path: Path, size: tuple[int, int], image_tag: int, depth_tag: int
):
    pair = write(tmp_path, size, image_tag, depth_tag)
    with pytest.raises(UserError, match="EXIF orientation is") as caught:
        read_pair(pair, MILLIMETERS, "")
    assert str(pair.depth) in str(caught.value) and "depth_orientation=upright" in str(caught.value)
    image, depth, _ = read_pair(pair, MILLIMETERS, "stored")
    np.testing.assert_allclose(depth, image[..., 0] / 50)
    upright, _, _ = read_pair(write(tmp_path, size, depth_tag, depth_tag), MILLIMETERS, "")
    _, depth, _ = read_pair(write(tmp_path, size, image_tag, depth_tag), MILLIMETERS, "upright")
    np.testing.assert_allclose(depth, upright[..., 0] / 50)


def test_aspect_shows_an_upright_map(tmp_path: Path):
    pair = write(tmp_path, (6, 12), 6, None)
    depth = np.full((12, 6), 2000, np.uint16)
    save(tmp_path / "a.depth.png", depth, None)
    assert read_pair(pair, MILLIMETERS, "")[1].shape == (12, 6)
    save(tmp_path / "a.depth.png", depth.T, None)
    with pytest.raises(UserError, match="EXIF orientation is 1, that of its image 6"):
        read_pair(pair, MILLIMETERS, "")


def test_array_beside_a_tagged_square_image_is_refused(tmp_path: Path):
    pair = write(tmp_path, (8, 8), 6, None)
    np.save(tmp_path / "a.npy", np.arange(1, 65, dtype=np.float32).reshape(8, 8))
    pair = Pair(pair.image, tmp_path / "a.npy")
    with pytest.raises(UserError, match="that of its image 6"):
        read_pair(pair, DepthFormat(), "")
    np.testing.assert_array_equal(read_pair(pair, DepthFormat(), "stored")[1][0, :2], [57, 49])


def test_image_without_depth_has_nothing_valid(tmp_path: Path):
    pair = write(tmp_path, (8, 8), 6, None)
    image, depth, valid = read_pair(Pair(pair.image, None), MILLIMETERS, "")
    assert image.shape == (8, 8, 3) and not depth.any() and not valid.any()


def test_repeated_farthest_depth_is_counted():
    rng = np.random.default_rng(0)
    good = rng.uniform(1, 5, (20, 20)).astype(np.float32)
    bad = good.copy()
    bad[:4] = 65.535
    everywhere = np.ones_like(good, np.bool_)

    def unreadable() -> tuple[np.ndarray, np.ndarray]:
        raise UserError("damaged")

    maps = [
        ("good", lambda: (good, everywhere)),
        ("unreadable", unreadable),
        ("bad", lambda: (bad, everywhere)),
        ("masked", lambda: (bad, bad < 10)),
    ]
    count, name, depth, fraction = pairs.repeated_values(maps)
    assert (count, name) == (1, "bad")
    np.testing.assert_allclose([depth, fraction], [65.535, 0.2], rtol=1e-6)
