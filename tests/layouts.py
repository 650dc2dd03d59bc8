"""Writes files of data sets in their published encodings, and reads complete sets."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from modality_forcing.data.files import orient
from modality_forcing.data.records import Record, check
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

RNG = np.random.default_rng(11)
JUNK = b"\x00\x05\x16\x07" * 1024  # the first bytes of macOS's "._" files


def image(path: Path, height: int, width: int) -> np.ndarray:
    """Writes an image of noise, except for .jpg and .JPG one color, and returns it u8 [h w 3]."""
    noise = RNG.integers(0, 256, (height, width, 3), np.uint8)
    image = noise if path.suffix == ".png" else np.full_like(noise, 90)
    return stored(path, image)


def stored(path: Path, array: np.ndarray) -> np.ndarray:
    """Writes an array as a PNG or JPEG and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def counts(path: Path, height: int, width: int, most: int = 65535) -> np.ndarray:
    """Writes 16-bit counts of which about a third is 0, and returns them."""
    values = RNG.integers(1, most, (height, width), np.uint16) * (RNG.random((height, width)) < 0.7)
    return stored(path, values.astype(np.uint16))


def tag(path: Path, orientation: int, *, turned: bool) -> None:
    """Gives an image file an EXIF orientation. turned: its pixels are stored so that it shows."""
    with Image.open(path) as opened:
        pixels = np.array(opened)
    if turned:
        pixels = orient(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def text(path: Path, content: str) -> Path:
    """Writes a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def junk(path: Path) -> Path:
    """Writes a file of bytes that no reader accepts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JUNK)
    return path


def pfm(path: Path, depth: np.ndarray) -> None:
    """Writes a little-endian PFM of f32 [h w] as most writers do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = depth.shape
    path.write_bytes(
        f"Pf\n{width} {height}\n-1.000000\n".encode() + depth[::-1].astype("<f4").tobytes()
    )


def array(path: Path, values: np.ndarray) -> np.ndarray:
    """Writes a .npy and returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return values


def hdf5(path: Path, key: str, values: np.ndarray) -> np.ndarray:
    """Writes one data set of an HDF5 file and returns it."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as opened:
        opened[key] = values
    return values


def packed(path: Path, depth: np.ndarray) -> None:
    """Writes f32 [h w] as an RGBA PNG whose bytes in OpenCV's BGRA order are the floats."""
    blue, green, red, alpha = np.moveaxis(
        depth.astype("<f4").view(np.uint8).reshape(*depth.shape, 4), -1, 0
    )
    stored(path, np.stack([red, green, blue, alpha], axis=-1))


def link(path: Path, target: Path) -> Path:
    """Links a real file into a layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def records(dataset: Dataset, root: Path, split: str = "") -> list[Record]:
    """Returns all records of a set after checking what every set must satisfy."""
    source = dataset.open(root, split or dataset.splits[0])
    records_read = [check(source[index]) for index in range(len(source))]
    assert {(record.source, record.unit) for record in records_read} == {
        (dataset.name, dataset.unit)
    }
    assert len({record.id for record in records_read}) == len(records_read)
    copy = pickle.loads(pickle.dumps(source))[len(records_read) - 1]  # noqa: S301
    np.testing.assert_array_equal(copy.depth, records_read[-1].depth)
    return records_read


def refused(dataset: Dataset, root: Path, split: str = "") -> str:
    """Returns the one-line error of opening a set or reading its first record."""
    with pytest.raises(UserError) as caught:
        dataset.open(root, split or dataset.splits[0])[0]
    message = str(caught.value)
    assert "\n" not in message and ": " in message
    return message


def refuses_other_folders(dataset: Dataset, root: Path) -> None:
    """Checks that no split opens in a missing or an empty folder."""
    (root / "empty").mkdir()
    for split in dataset.splits:
        assert "no such folder" in refused(dataset, root / "absent", split)
        assert refused(dataset, root / "empty", split).startswith(str(root / "empty"))
