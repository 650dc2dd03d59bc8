"""TFRecord: records are indexed and read, checksums equal TensorFlow's, other files are refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from modality_forcing.datasets.common.tfrecord import index_records, masked_crc, read_record
from modality_forcing.errors import UserError


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


def test_records_are_indexed_and_read(tmp_path: Path):
    records = [b"first", b"", b"third" * 1000]
    path = write(tmp_path / "a.tfrecord", records)
    places = index_records(path)
    assert places == ((12, 5), (33, 0), (49, 5000))
    assert [read_record(path, place) for place in places] == records
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
