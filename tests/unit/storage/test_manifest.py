"""The manifest: read as written, and one line for one that is damaged or of another format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.storage import manifest
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.stats import DatasetStats
from modality_forcing.text_io import with_checksum
from tests import damage


def written(folder: Path, contents: tuple[bytes, ...] = (b"one", b"two")) -> Manifest:
    files = []
    for index, content in enumerate(contents):
        (folder / f"shard{index}").write_bytes(content)
        files.append(
            ShardFile(
                f"shard{index}",
                10 + index,
                index,
                len(content),
                hashlib.sha256(content).hexdigest(),
            )
        )
    found = Manifest(
        path=manifest.manifest_path(folder, "val"),
        name="tum",
        title="TUM RGB-D",
        split="val",
        unit="metric",
        license="CC BY 4.0",
        files=tuple(files),
        stats=DatasetStats().summary(),
        settings={"resolution": 256},
        versions={"pillow": "13"},
    )
    manifest.write(found)
    return found


def test_read_inverts_write(tmp_path: Path):
    before = written(tmp_path)
    after = manifest.read(tmp_path, "val")
    assert after == before
    content = json.loads((tmp_path / "manifest-val.json").read_text())
    assert content == before.to_json()
    assert (
        content["failed"] == 1
        and content["bytes"] == 6
        and content["shards"] == 2
        and content["unit"] == "metric"
    )
    assert manifest.read(tmp_path, "train") is None


def test_checksums_are_verified(tmp_path: Path):
    found = written(tmp_path)
    manifest.verify(found)
    (tmp_path / "shard1").write_bytes(b"tw0")
    with pytest.raises(
        UserError, match="shard1: is not what was written: its checksum differs; delete it"
    ):
        manifest.verify(found)
    (tmp_path / "shard1").unlink()
    with pytest.raises(UserError, match=r"shard1: cannot be read \(No such file"):
        manifest.verify(found)


def change(folder: Path, **changes) -> None:
    path = manifest.manifest_path(folder, "val")
    content = {**json.loads(path.read_text()), **changes}
    del content["checksum"]
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(with_checksum(kept)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "is of format 1, and this version reads 2; prepare the data set again"),
        ({"files": None}, "is not a manifest"),
        ({"files": [{"name": "x"}]}, "is not a manifest"),
        ({"files": 3}, "is not a manifest"),
        ({"settings": [1]}, "is not a manifest"),
        ({"records": None}, r"is not a manifest \('records' is missing\)"),
        ({"records": 0.5}, r"is not a manifest \(0.5 is not a count\)"),
        ({"unit": 3}, r"is not a manifest \(3 is not a text\)"),
        ({"depth": {"min": 1}}, "is not a manifest"),
        ({"sizes": [3]}, "is not a manifest"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, changes: dict, message: str):
    written(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(UserError, match=f"manifest-val.json: {message}"):
        manifest.read(tmp_path, "val")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_manifest_is_refused(tmp_path: Path, content: bytes):
    manifest.manifest_path(tmp_path, "val").write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"manifest-val.json: is (damaged|not text in UTF-8) \(.*\); delete it and run",
    ):
        manifest.read(tmp_path, "val")


def test_changed_digit_is_refused_and_a_manifest_without_checksum_is_read(tmp_path: Path):
    before = written(tmp_path)
    text = before.path.read_text()
    before.path.write_text(text.replace('"records": 11', '"records": 17'))
    with pytest.raises(UserError, match=r"is damaged \(its checksum differs\); delete it and run"):
        manifest.read(tmp_path, "val")
    content = json.loads(text)
    del content["checksum"]  # as earlier versions wrote it
    before.path.write_text(json.dumps(content))
    assert manifest.read(tmp_path, "val") == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder whose manifest every example of the fuzz test damages."""
    return tmp_path_factory.mktemp("manifest")


@given(st.data())
@damage.examples(60)
def test_damaged_manifest_is_one_line_or_unchanged(folder: Path, data):
    before = written(folder)
    before.path.write_bytes(data.draw(damage.of(before.path.read_bytes())))
    try:
        found = manifest.read(folder, "val")
        assert found is not None
        # A changed name of the checksum is one more key, which nothing reads, and which a new
        # checksum counts.
        kept = {k: v for k, v in before.to_json().items() if k != "checksum"}
        assert {**found.to_json(), **kept} == found.to_json()
        manifest.verify(found)
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
