"""TFRecord: records are indexed and read, checksums equal TensorFlow's, other files are refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.datasets.common import tfrecord
from modality_forcing.datasets.common.tfrecord import index_records, masked_crc, read_record
from modality_forcing.errors import UserError
from tests import damage

RECORDS = [b"first", b"", b"third" * 1000]


def write(path: Path, records: list[bytes]) -> Path:
    written = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        written += (
            length
            + struct.pack("<I", masked_crc(length))
            + record
            + struct.pack("<I", masked_crc(record))
        )
    path.write_bytes(written)
    return path


def test_checksum_is_crc_32c():
    def crc(content: bytes) -> int:
        turned = (masked_crc(content) - 0xA282EAD8) % 2**32
        return (turned >> 17 | turned << 15) % 2**32

    assert crc(b"123456789") == 0xE3069283  # the check value of the CRC catalog
    assert crc(bytes(32)) == 0x8A9136AA and crc(b"\xff" * 32) == 0x62A8AB43  # RFC 3720, B.4


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 2050, 5000])
def test_checksum_in_lanes_is_that_of_each_byte_in_turn(length: int):
    content = np.random.default_rng(length).bytes(length)
    crc = tfrecord._advance(0xFFFFFFFF, content) ^ 0xFFFFFFFF
    assert masked_crc(content) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A file that every example of the fuzz test damages and repairs."""
    return write(tmp_path_factory.mktemp("stored") / "a.tfrecord", RECORDS)


@given(st.data())
@damage.examples(60)
def test_damaged_file_is_one_line_or_gives_the_same_records(stored: Path, data):
    before = stored.read_bytes()
    stored.write_bytes(data.draw(damage.of(before)))
    try:
        found = [read_record(stored, place) for place in index_records(stored)]
        assert found == RECORDS[: len(found)]  # a file may end after any record
    except UserError as error:
        assert str(stored) in str(error) and "\n" not in str(error)
    finally:
        stored.write_bytes(before)


def test_changed_byte_of_a_record_is_refused(tmp_path: Path):
    path = write(tmp_path / "a.tfrecord", RECORDS)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    places = index_records(path)
    assert read_record(path, places[0]) == RECORDS[0]
    with pytest.raises(UserError, match=r"the checksum of the record at byte 49 differs"):
        read_record(path, places[2])


def test_records_are_indexed_and_read(tmp_path: Path):
    path = write(tmp_path / "a.tfrecord", RECORDS)
    places = index_records(path)
    assert places == ((12, 5), (33, 0), (49, 5000))
    assert [read_record(path, place) for place in places] == RECORDS
    assert index_records(write(tmp_path / "none.tfrecord", [])) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored[:-1], "was cut off in its record 1"),
        (lambda stored: stored[:20], "was cut off in its record 0"),
        (lambda stored: stored + b"1234", "was cut off in its record 2"),
        (lambda stored: gzip.compress(stored), "is not a TFRecord file, or damaged"),
        (lambda stored: stored[:3] + b"\x01" + stored[4:], "is not a TFRecord file, or damaged"),
    ],
)
def test_damaged_files_are_reported(tmp_path: Path, change, message: str):
    path = write(tmp_path / "a.tfrecord", [b"first", b"second"])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"a\.tfrecord: {message}") as caught:
        index_records(path)
    assert "\n" not in str(caught.value)


def test_missing_and_changed_files_are_reported(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        index_records(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        read_record(tmp_path / "none", (12, 5))
    path = write(tmp_path / "a.tfrecord", [b"first"])
    with pytest.raises(UserError, match="shorter than when it was listed"):
        read_record(path, (12, 50))
