"""TFRecord files, read without TensorFlow: where the records lie, and each by itself.

A record is its length (u64, little-endian), the masked CRC-32C of those 8 bytes, its bytes, and their masked CRC-32C. The
first checksum is verified, so that a file of another kind is noticed; the second is not, as what is stored in the records
has checksums of its own. Source: tensorflow.org, tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

from modality_forcing.errors import UserError

_AGAIN = "download it again"
_HEADER, _FOOTER = 12, 4
_POLYNOMIAL = 0x82F63B78  # of Castagnoli, bits reversed


def index_records(path: Path) -> tuple[tuple[int, int], ...]:
    """Returns where each record of a file begins, and its length in bytes.

    Raises UserError if the file cannot be read, is not a TFRecord file (a compressed one is not), or was cut off.
    """
    places: list[tuple[int, int]] = []
    try:
        with open(path, "rb") as opened:
            size = path.stat().st_size
            at = 0
            while at < size:
                opened.seek(at)
                header = opened.read(_HEADER)
                if (
                    len(header) == _HEADER
                    and masked_crc(header[:8]) != struct.unpack("<I", header[8:])[0]
                ):
                    raise UserError("is not a TFRecord file, or damaged", where=path, hint=_AGAIN)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
                end = at + _HEADER + length + _FOOTER
                if end > size:
                    raise UserError(
                        f"was cut off in its record {len(places)}", where=path, hint=_AGAIN
                    )
                places.append((at + _HEADER, length))
                at = end
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=path, hint="check the path"
        ) from error
    return tuple(places)


def read_record(path: Path, place: tuple[int, int]) -> bytes:
    """Returns the bytes of a record that `index_records` found; raises UserError if the file changed since."""
    start, length = place
    try:
        with open(path, "rb") as opened:
            opened.seek(start)
            content = opened.read(length)
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=path, hint="check the path"
        ) from error
    if len(content) != length:
        raise UserError("is shorter than when it was listed", where=path, hint=_AGAIN)
    return content


def masked_crc(content: bytes) -> int:
    """Returns the checksum of a record as it is stored: the CRC-32C turned right by 15 bits, and a constant added."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _table()[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        rows.append(crc)
    return tuple(rows)
