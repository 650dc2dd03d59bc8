"""WebDataset: pairs are indexed and read by offset, damaged tars are refused in one line."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import check
from modality_forcing.datasets.webdataset import DATASET, pairs
from modality_forcing.errors import UserError


def encoded_image(
    value: int, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (9, 6)
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "P") else (value,) * len(mode)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            about.type = (
                tarfile.DIRTYPE
                if name.endswith("/")
                else tarfile.REGTYPE
                if content
                else tarfile.SYMTYPE
            )
            about.linkname = "" if content else "elsewhere"
            opened.addfile(about, io.BytesIO(content))
    return path


def test_images_are_paired_with_captions(tmp_path: Path):
    write(
        tmp_path / "part/00001.tar",
        [
            ("0003.webp", encoded_image(80, "WEBP")),
            ("0003.json", json.dumps({"caption": "from json", "url": "x"}).encode()),
        ],
    )
    write(
        tmp_path / "00000.tar",
        [
            ("000/", b""),
            ("000/._0000.jpg", b"junk"),
            ("000/0000.JPG", encoded_image(10, "JPEG")),
            ("000/0000.json", b'{"caption": "of the json"}'),
            ("000/0000.txt", "of the\n txt \u6728".encode()),
            ("000/0001.txt", b"no image"),
            ("000/0002.seg.png", encoded_image(1)),
            ("000/0002.png", encoded_image(200, mode="RGBA")),
            ("000/._0002.png", b"junk"),
            ("000/0002.txt", b"its txt"),
            ("000/0002.json", b'{"caption": "after the txt"}'),
            ("000/linked.png", b""),
            ("001/0002.jpeg", encoded_image(30, "JPEG", mode="L")),
            ("001/0002.json", b'{"caption": null}'),
        ],
    )
    (tmp_path / "._00000.tar").write_bytes(b"junk")
    source = DATASET.open(tmp_path, "train")
    records = [check(pickle.loads(pickle.dumps(source))[index]) for index in range(len(source))]  # noqa: S301
    assert [record.id for record in records] == [
        "00000/000/0000",
        "00000/000/0002",
        "00000/001/0002",
        "part/00001/0003",
    ]
    assert [record.caption for record in records] == [
        "of the txt \u6728",
        "its txt",
        "",
        "from json",
    ]
    assert [record.image.shape for record in records] == [(6, 9, 3)] * 4
    assert not any(record.valid.any() for record in records)
    np.testing.assert_allclose(
        [record.image.mean() for record in records], [10, 211, 30, 80], atol=4
    )


def test_long_names_are_read(tmp_path: Path):
    key = "a" * 150 + "/" + "b" * 120
    write(tmp_path / "0.tar", [(f"{key}.png", encoded_image(5)), (f"{key}.txt", b"long")])
    record = DATASET.open(tmp_path, "train")[0]
    assert record.id == f"0/{key}" and record.caption == "long"


def test_offsets_point_to_the_content(tmp_path: Path):
    path = write(tmp_path / "0.tar", [("a.txt", b"hello"), ("a.png", encoded_image(5))])
    (pair,) = pairs(path)
    assert pair.text is not None
    assert path.read_bytes()[pair.text.offset : pair.text.offset + pair.text.size] == b"hello"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"junk"), ("a.txt", b"x")], r"0\.tar:a\.png: cannot be read as an image"),
        (
            [("a.png", encoded_image(3)[:50]), ("a.txt", b"x")],
            r"0\.tar:a\.png: cannot be read as an image",
        ),
        (
            [("a.png", encoded_image(3)), ("a.txt", b"\xff\xfe")],
            r"0\.tar:a\.txt: its text cannot be read",
        ),
        (
            [("a.png", encoded_image(3)), ("a.json", b"{")],
            r"0\.tar:a\.json: its text cannot be read",
        ),
        (
            [("a.png", encoded_image(3)), ("a.json", b'{"caption": 3}')],
            r"0\.tar:a\.json: its text cannot be read",
        ),
    ],
)
def test_damaged_members_are_named(tmp_path: Path, members: list[tuple[str, bytes]], message: str):
    source = DATASET.open(write(tmp_path / "0.tar", members).parent, "train")
    with pytest.raises(UserError, match=message) as caught:
        source[0]
    assert "\n" not in str(caught.value)


def test_damaged_tars_are_named(tmp_path: Path):
    path = write(
        tmp_path / "0.tar",
        [("a.png", encoded_image(3)), ("b.png", encoded_image(4, size=(900, 700)))],
    )
    content_bytes = path.read_bytes()
    for content in (
        b"",
        b"junk" * 1000,
        gzip.compress(content_bytes),
        content_bytes[:1700],
        content_bytes[:700],
    ):
        path.write_bytes(content)
        with pytest.raises(
            UserError,
            match=r"0\.tar: cannot be read as a plain tar \(compressed, damaged or cut short\)",
        ):
            DATASET.open(tmp_path, "train")
    path.write_bytes(content_bytes)
    source = DATASET.open(tmp_path, "train")
    path.write_bytes(content_bytes[:520])
    with pytest.raises(UserError, match=r"0\.tar: has become shorter"):
        source[0]
    path.unlink()
    with pytest.raises(UserError, match=r"0\.tar: cannot be read \(No such file"):
        source[0]


def test_missing_data_is_reported(tmp_path: Path):
    with pytest.raises(UserError, match="none: no such folder"):
        DATASET.open(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"holds no \.tar; its layout is"):
        DATASET.open(tmp_path, "train")
    write(tmp_path / "0.tar", [("a.txt", b"x")])
    with pytest.raises(UserError, match="holds no image in 1 tars"):
        DATASET.open(tmp_path, "train")
    with pytest.raises(UserError, match="has no split 'val'"):
        DATASET.open(tmp_path, "val")
