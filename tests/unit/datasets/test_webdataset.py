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
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_examples_are_grouped_wherever_their_files_are(tmp_path: Path):
    images = [(f"{i}.png", encoded_image(i * 50)) for i in range(3)]
    texts = [(f"{i}.txt", f"caption {i}".encode()) for i in (2, 0, 1)]
    for name, members in [
        ("a", images + texts),
        ("b", texts + images),
        ("c", 2 * [*images, *texts]),
    ]:
        write(tmp_path / f"{name}.tar", members)
    source = DATASET.open(tmp_path, "train")
    assert len(source) == 12 and source.notes() == []
    for i in range(12):
        record = source[i]
        assert record.caption == f"caption {record.image[0, 0, 0] // 50}"


def test_joined_tars_keep_both_examples_of_a_name(tmp_path: Path):
    one, two = ([("a.png", encoded_image(i)), ("a.txt", b"%d" % i)] for i in (1, 2))
    for name, members in [("0", [*one, *two]), ("1", [*one, ("b.png", encoded_image(9)), *two])]:
        write(tmp_path / f"{name}.tar", members)
    source = DATASET.open(tmp_path, "train")
    second = [source[i] for i in range(len(source)) if source[i].id.startswith("1/")]
    assert [record.caption for record in second] == ["1", "", "2"]


def test_texts_without_image_are_counted(tmp_path: Path):
    write(tmp_path / "0.tar", [("a.png", encoded_image(1)), ("b.txt", b"x"), ("c.json", b"{}")])
    bare, without = DATASET.open(tmp_path, "train").notes()
    assert "2 texts have no image beside them (0.tar:b, 0.tar:c)" in bare
    assert "1 of 1 images have no text beside them (0.tar:a)" in without


def test_list_of_captions_is_kept(tmp_path: Path):
    listed = json.dumps({"caption": ["one", "two", "", "one"], "score": float("nan")})
    write(tmp_path / "0.tar", [("a.png", encoded_image(1)), ("a.json", listed.encode())])
    record = DATASET.open(tmp_path, "train")[0]
    assert (record.caption, *record.other_captions) == ("one", "two")


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path):
    name = "caf\udce9"
    write(tmp_path / "0.tar", [(f"{name}.png", encoded_image(1)), (f"{name}.txt", b"x")])
    record = check(DATASET.open(tmp_path, "train")[0])
    assert record.id == "0/caf\\xe9" and record.caption == "x"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_any_damage_gives_records_or_one_line(tmp_path_factory, at: int, value: int, cut: bool):
    path = tmp_path_factory.getbasetemp() / "fuzz/0.tar"
    members = [("a.png", encoded_image(3)), ("a.json", b'{"caption": ["x", "y"]}'), ("a.txt", b"z")]
    content = write(path, members).read_bytes()
    at %= 4096
    path.write_bytes(content[:at] if cut else content[:at] + bytes([value]) + content[at + 1 :])
    try:
        source = DATASET.open(path.parent, "train")
        source.notes()
        for i in range(len(source)):
            check(source[i])
    except UserError as error:
        assert "\n" not in str(error)


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
        (
            [("a.png", encoded_image(3)), ("a.json", b'{"caption": "x\\ud83c"}')],
            r"0\.tar:a\.json: its caption holds half a character",
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
    with pytest.raises(UserError, match=r"0\.tar: is shorter than when it was listed"):
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
