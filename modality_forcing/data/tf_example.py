"""The wire form of tf.train.Example, the message that most tools of the field read, without TensorFlow.

An Example holds named features, each a list of bytes, of 32-bit floats or of 64-bit integers. Source: tensorflow,
core/example/example.proto and feature.proto; the encoding is that of Protocol Buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Feature = list[bytes] | list[float] | list[int]

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # the kinds of a Feature, by field number
_VARINT, _FIXED64, _COUNTED, _FIXED32 = 0, 1, 2, 5  # wire types
_UNSIGNED = 2**64


def encode(features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]]) -> bytes:
    """Returns an Example: the same bytes for the same features in any order.

    The first element of a list tells its kind; an empty list is a list of bytes. Raises ValueError for what is neither
    bytes, float nor int, or an integer of more than 64 bits.
    """
    entries = b"".join(_field(1, _field(1, name.encode()) + _field(2, _feature(features[name]))) for name in sorted(features))
    return _field(1, entries)


def decode(content: bytes) -> dict[str, Feature]:
    """Returns the features of an Example; of a name that comes twice the last is taken, and unknown fields are passed over.

    Raises ValueError for bytes that are no whole Example.
    """
    features: dict[str, Feature] = {}
    for number, entries in _fields(content):
        if number != 1 or not isinstance(entries, bytes):
            continue
        for kind, entry in _fields(entries):
            if kind == 1 and isinstance(entry, bytes):
                parts = dict(_fields(entry))
                name, value = parts.get(1, b""), parts.get(2, b"")
                if not isinstance(name, bytes) or not isinstance(value, bytes):
                    raise ValueError("a feature of an Example has no name or no value")
                features[name.decode()] = _values(value)
    return features


def _feature(values: Sequence[bytes] | Sequence[float] | Sequence[int]) -> bytes:
    first = values[0] if len(values) else b""
    if isinstance(first, bytes):
        return _field(_BYTES, b"".join(_field(1, value) for value in values if isinstance(value, bytes)))
    if isinstance(first, float):
        return _field(_FLOATS, _field(1, np.asarray(values, "<f4").tobytes()))
    if isinstance(first, int) and not isinstance(first, bool):
        return _field(_INTEGERS, _field(1, b"".join(_varint(_unsigned(int(value))) for value in values)))
    raise ValueError(f"a feature holds {type(first).__name__}, not bytes, float or int")


def _values(feature: bytes) -> Feature:
    values: Feature = []
    for kind, listed in _fields(feature):
        if kind not in (_BYTES, _FLOATS, _INTEGERS) or not isinstance(listed, bytes):
            continue
        items = [item for number, item in _fields(listed) if number == 1]
        if kind == _BYTES:
            values = [item for item in items if isinstance(item, bytes)]
        elif kind == _FLOATS:
            values = [number for item in items for number in _floats(item)]
        else:
            values = [number for item in items for number in _integers(item)]
    return values


def _floats(item: bytes | int) -> list[float]:
    packed = item if isinstance(item, bytes) else struct.pack("<I", item)
    return np.frombuffer(packed, "<f4").tolist()


def _integers(item: bytes | int) -> list[int]:
    if isinstance(item, int):
        return [_signed(item)]
    numbers, at = [], 0
    while at < len(item):
        number, at = _read_varint(item, at)
        numbers.append(_signed(number))
    return numbers


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message: number and content, an int for the wire types of fixed or varying length."""
    at, end = 0, len(message)
    while at < end:
        key, at = _read_varint(message, at)
        wire = key & 7
        if wire == _COUNTED:
            length, at = _read_varint(message, at)
            if length > end - at:
                raise ValueError("an Example ends in the middle of a field")
            yield key >> 3, message[at : at + length]
            at += length
        elif wire == _VARINT:
            number, at = _read_varint(message, at)
            yield key >> 3, number
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
            if length > end - at:
                raise ValueError("an Example ends in the middle of a number")
            yield key >> 3, int.from_bytes(message[at : at + length], "little")
            at += length
        else:
            raise ValueError(f"an Example has a field of wire type {wire}")


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number % _UNSIGNED, at
        shift += 7
    raise ValueError("an Example ends in the middle of a number")


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _COUNTED) + _varint(len(content)) + content


def _unsigned(number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{number} has more than 64 bits")
    return number % _UNSIGNED


def _signed(number: int) -> int:
    return number - _UNSIGNED if number >= 2**63 else number
