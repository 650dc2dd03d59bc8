"""Reads TFRecord files without TensorFlow: the offsets of the records, and each one at random.

A record is its length (u64, little-endian), the masked CRC-32C of those 8 bytes, its bytes, and
their masked CRC-32C. Both checksums are verified: the first when a file is indexed, which detects
files of another kind, the second when a record is read.
Source: tensorflow.org, tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import struct
from functools import cache, reduce
from operator import xor
from pathlib import Path

import numpy as np

from modality_forcing.datasets.common.formats import read_span
from modality_forcing.errors import UserError

_AGAIN = "download it again"
_HEADER, _FOOTER = 12, 4
_LANES = 1024  # parts of a record whose checksums advance together
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
    """Returns the bytes of a record of `index_records`.

    Raises UserError if the file changed, or the record is not that of its checksum.
    """
    start, length = span
    stored = read_span(path, start, length + _FOOTER)
    content = stored[:length]
    if masked_crc(content) != int.from_bytes(stored[length:], "little"):
        what = f"is damaged: the checksum of the record at byte {start} differs"
        raise UserError(what, where=path, hint=_AGAIN)
    return content


def masked_crc(content: bytes) -> int:
    """Returns the checksum of a record as stored: CRC-32C rotated by 15 bits, plus a constant."""
    length = len(content) // _LANES  # of each lane; what is left over comes first
    crc = _advance(0xFFFFFFFF, content[: len(content) - length * _LANES])
    if length:
        crc = _advance_in_lanes(crc, np.frombuffer(content, np.uint8)[-length * _LANES :])
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def _advance(crc: int, content: bytes) -> int:
    table = _crc_table()
    for byte in content:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc


def _advance_in_lanes(crc: int, content: np.ndarray) -> int:
    """Returns what `_advance` does, of u8 [n], by a loop over n / _LANES bytes of all lanes.

    The checksum is linear: that of all bytes is the sum (xor) of those of the lanes, each advanced
    by the bytes after it. 32 more lanes of zeros, one for each bit, give that advance.
    """
    table = np.array(_crc_table(), np.uint32)
    lanes = content.reshape(_LANES, -1)
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    state = np.concatenate([np.zeros(_LANES, np.uint32), bits])
    state[0] = crc
    for step in lanes.T:
        index = state & np.uint32(255)
        index[:_LANES] ^= step
        state = table[index] ^ (state >> np.uint32(8))
    each, advanced = state[:_LANES].tolist(), state[_LANES:].tolist()
    crc = each[0]
    for lane in each[1:]:
        crc = lane ^ reduce(xor, (x for bit, x in enumerate(advanced) if crc >> bit & 1), 0)
    return crc


@cache
def _crc_table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        for _ in range(8):
            row = row >> 1 ^ (_POLYNOMIAL if row & 1 else 0)
        rows.append(row)
    return tuple(rows)
