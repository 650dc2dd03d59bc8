"""Shards: records in order, from any process; errors name the damaged file."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing import paths
from modality_forcing.data.records import check
from modality_forcing.errors import UserError
from modality_forcing.storage import codec, manifest, shards
from modality_forcing.storage.shards import Shards, ShardWriter, shard_name
from modality_forcing.synthetic.source import Scenes
from tests import damage

SCENES = Scenes(count=20, resolution=16)


def write(
    folder: Path, sizes: tuple[int, ...], name: str = "scenes", split: str = "train"
) -> list[Path]:
    written, record = [], 0
    for index, size in enumerate(sizes):
        written.append(folder / shard_name(name, split, index, len(sizes)))
        with ShardWriter(written[-1]) as writer:
            for _ in range(size):
                writer.write(codec.encode(SCENES[record], "png"))
                record += 1
    return written


def test_records_are_in_order(folder: Path):
    write(folder / "new", (3, 0, 4, 1, 0))
    source = Shards(folder / "new", "train")
    assert len(source) == 8
    for index in (7, 0, 2, 3, 6, 1, 5, 4):
        record = check(source[index])
        assert record.id == SCENES[index].id
        np.testing.assert_array_equal(record.image, SCENES[index].image)
        assert codec.decode(source.example(index)).caption == SCENES[index].caption
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            source[outside]


def test_names_are_those_of_tensorflow_datasets():
    assert shard_name("kitti", "val", 3, 12) == "kitti-val.array_record-00003-of-00012"


def test_split_is_required_if_there_are_several(folder: Path):
    write(folder, (2,), name="my-set")
    assert Shards(folder).split == "train"
    write(folder, (1, 1), name="my-set", split="val")
    assert len(Shards(folder, "val")) == len(Shards(folder, "train")) == 2
    with pytest.raises(UserError, match="holds several splits; choose one of train, val"):
        Shards(folder)
    with pytest.raises(UserError, match="has no split 'test'; choose one of train, val"):
        Shards(folder, "test")


def first_id(source: Shards) -> str:
    return source[0].id


def test_shards_are_picklable_and_thread_safe(folder: Path):
    write(folder, (3, 3))
    source = Shards(folder)
    assert source[0].id == SCENES[0].id  # opened here, before it is sent
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert copy == source and copy[5].id == SCENES[5].id
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda index: source[index % 6].id, range(60)))
    assert ids == [SCENES[index % 6].id for index in range(60)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_id, (source,)) == SCENES[0].id


def test_number_of_open_shards_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_MAX_OPEN", 2)
    write(tmp_path, (1, 1, 1, 1))
    source = Shards(tmp_path)
    for index in (0, 1, 2, 3, 0, 2):
        assert source[index].id == SCENES[index].id
    assert len(source._readers) == 2


def test_unfinished_shard_does_not_appear(tmp_path: Path):
    path = tmp_path / shard_name("scenes", "train", 0, 1)
    with pytest.raises(RuntimeError, match="on the way"), ShardWriter(path) as writer:
        writer.write(b"x" * 200_000)
        assert not path.exists()
        raise RuntimeError("on the way")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="holds no shards"):
        Shards(tmp_path)


def test_shard_of_a_bucket_is_uploaded_whole_or_not_at_all(bucket, gs_path: Path, tmp_path: Path):
    on_disk = write(tmp_path, (3,))[0]
    bucket.requests.clear()
    in_bucket = write(gs_path, (3,))[0]
    assert [method for method, _ in bucket.requests] == ["POST"]
    assert paths.read_bytes(in_bucket) == on_disk.read_bytes()
    with pytest.raises(ZeroDivisionError), ShardWriter(gs_path / "x") as writer:
        writer.write(b"lost")
        raise ZeroDivisionError
    assert paths.list_dir(gs_path) == [in_bucket]
    assert not list(Path(tempfile.gettempdir()).glob("mforce-*/.scenes-*"))


def test_writer_knows_size_and_checksum(folder: Path):
    with ShardWriter(folder / "x") as writer:
        writer.write(b"example")
    content = paths.read_bytes(folder / "x")
    assert (writer.bytes, writer.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest.sha256(folder / "x") == writer.sha256


def test_shards_in_s3_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="disks and gs:// only"):
        shards._open(paths.as_path("s3://bucket/x"))


def test_unwritable_folder_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be created \(File exists"):
        write(tmp_path / "file", (1,))


def test_full_disk_is_one_line(tmp_path: Path):
    path = tmp_path / "full"
    writer = ShardWriter(path)
    writer._temporary.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full: cannot be written \(.*No space left"), writer:
        for _ in range(20):
            writer.write(np.random.default_rng(0).bytes(200_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 5000, 100_000])
def test_truncated_shard_is_named(tmp_path: Path, cut: int):
    path = write(tmp_path, (2, 3))[1]
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        UserError,
        match=r"00001-of-00002: is truncated, or not an ArrayRecord; delete .*00002 and run",
    ):
        Shards(tmp_path)


def test_damaged_record_is_named(tmp_path: Path):
    path = write(tmp_path, (3,))[0]
    content = bytearray(path.read_bytes())
    at = content.index(SCENES[1].caption.encode())
    content[at] ^= 1
    path.write_bytes(content)
    source = Shards(tmp_path)
    assert source[0].id == SCENES[0].id and source[2].id == SCENES[2].id
    with pytest.raises(UserError, match="00000-of-00001: record 1 cannot be read") as caught:
        source[1]
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def spare(tmp_path_factory) -> Path:
    """A shard that every example of the fuzz test damages and repairs."""
    return write(tmp_path_factory.mktemp("spare"), (2,))[0]


@given(st.data())
@damage.examples(60)
def test_damaged_shard_gives_one_line_or_the_same_examples(spare: Path, data):
    before = spare.read_bytes()
    spare.write_bytes(data.draw(damage.of(before)))
    try:
        source = Shards(spare.parent)
        examples = [source.example(index) for index in range(len(source))]
    except UserError as error:
        assert str(spare) in str(error) and "\n" not in str(error)
    else:
        assert examples == [codec.encode(SCENES[index], "png") for index in range(2)]
    finally:
        spare.write_bytes(before)


def test_foreign_examples_are_reported(folder: Path):
    with ShardWriter(folder / shard_name("other", "train", 0, 1)) as writer:
        writer.write(b"something else")
    with pytest.raises(UserError, match=r"00000-of-00001: record 0 is not a prepared example"):
        Shards(folder)[0]


def test_missing_shards_and_mixed_runs_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none: no such folder"):
        Shards(tmp_path / "none")
    written = write(tmp_path, (1, 1, 1))
    written[1].unlink()
    with pytest.raises(
        UserError, match=r"lacks 1 of 3 shards of train \(1\); run the same mforce prepare again"
    ):
        Shards(tmp_path)
    write(tmp_path, (1, 1))
    with pytest.raises(
        UserError, match=r"holds the shards of two runs \(scenes in 2 and scenes in 3\)"
    ):
        Shards(tmp_path)
