"""Reads TFRecord files without TensorFlow: the offsets of the records, and each one at random.

A record is its length (u64, little-endian), the masked CRC-32C of those 8 bytes, its bytes, and
their masked CRC-32C. The first checksum is verified, which detects files of another kind; the
second is not, since the contents of records have checksums of their own.
Source: tensorflow.org, tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from modality_forcing.errors import UserError

_AGAIN = "download it again"
_HEADER, _FOOTER = 12, 4
_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed


def index_records(path: Path) -> tuple[tuple[int, int], ...]:
    """Returns offset and length in bytes of each record of a file.

    Raises UserError if the file cannot be read, is truncated, or is not an (uncompressed) TFRecord.
    """
    spans: list[tuple[int, int]] = []
    try:
        with open(path, "rb") as opened:
            size, start = path.stat().st_size, 0
            while start < size:
                opened.seek(start)
                header = opened.read(_HEADER)
                length = size  # of a header that is cut off
                if len(header) == _HEADER:
                    length, crc = struct.unpack("<QI", header)
                    if masked_crc(header[:8]) != crc:
                        what = "is not a TFRecord file, or damaged"
                        raise UserError(what, where=path, hint=_AGAIN)
                end = start + _HEADER + length + _FOOTER
                if end > size:
                    what = f"was cut off in its record {len(spans)}"
                    raise UserError(what, where=path, hint=_AGAIN)
                spans.append((start + _HEADER, length))
                start = end
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, where=path, hint="check the path") from error
    return tuple(spans)


def read_record(path: Path, span: tuple[int, int]) -> bytes:
    """Returns the bytes of a record of `index_records`. Raises UserError if the file changed."""
    start, length = span
    try:
        with open(path, "rb") as opened:
            opened.seek(start)
            content = opened.read(length)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, where=path, hint="check the path") from error
    if len(content) != length:
        raise UserError("is shorter than when it was listed", where=path, hint=_AGAIN)
    return content


def masked_crc(content: bytes) -> int:
    """Returns the checksum of a record as stored: CRC-32C rotated by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _crc_table()[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@cache
def _crc_table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        for _ in range(8):
            row = row >> 1 ^ (_POLYNOMIAL if row & 1 else 0)
        rows.append(row)
    return tuple(rows)
