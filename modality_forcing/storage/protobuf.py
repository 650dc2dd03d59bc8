"""Messages in the wire format of Protocol Buffers, taken apart without their schema and without copying large fields.

A field is kept by its number, in the order of the message: an int of a varint, else the bytes of what is there (4 or 8 of a
fixed one). What these bytes mean the schema knows, and so does who asks. Source: protobuf.dev, encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Value = int | memoryview
Fields = dict[int, list[Value]]

_VARINT, _FIXED64, _COUNTED, _FIXED32 = 0, 1, 2, 5
_LENGTHS = {_COUNTED: None, _FIXED64: 8, _FIXED32: 4}  # bytes; None: the field says
_LONGEST = 10  # bytes of a varint of 64 bits


def parse(message: bytes | memoryview) -> Fields:
    """Returns the fields of a message, each a list; raises ValueError if it is not a whole message."""
    view = memoryview(message)
    size, at = len(view), 0
    fields: Fields = {}
    while at < size:
        key, at = (
            (view[at], at + 1) if view[at] < 128 else _varint(view, at)
        )  # as most are, and a call takes as long again
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(view, at)
        elif wire in _LENGTHS:
            length = _LENGTHS[wire]
            if length is None:
                length, at = (
                    (view[at], at + 1) if at < size and view[at] < 128 else _varint(view, at)
                )
            if length > size - at:
                raise ValueError("a message ends in the middle of a field")
            value = view[at : at + length]
            at += length
        else:
            raise ValueError(f"a message has a field of wire type {wire}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def message(fields: Fields, number: int) -> Fields:
    """Returns the message in a field, that of the last if there are several, an empty one if there is none."""
    return parse(content(fields, number))


def messages(fields: Fields, number: int) -> list[Fields]:
    """Returns the messages in a repeated field."""
    return [parse(_bytes(value)) for value in fields.get(number, [])]


def content(fields: Fields, number: int) -> memoryview:
    """Returns the bytes in a field, those of the last if there are several, none if there is none."""
    values = fields.get(number, [])
    return _bytes(values[-1]) if values else memoryview(b"")


def integer(fields: Fields, number: int, default: int = 0) -> int:
    """Returns the number in a field of varying length."""
    value = fields.get(number, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no integer")
    return value


def doubles(fields: Fields, number: int) -> np.ndarray:
    """Returns the f64 [n] of a repeated field, packed or not."""
    return _fixed(fields.get(number, []), "<f8")


def floats(fields: Fields, number: int) -> np.ndarray:
    """Returns the f32 [n] of a repeated field, packed or not."""
    return _fixed(fields.get(number, []), "<f4")


def integers(fields: Fields, number: int) -> np.ndarray:
    """Returns the i64 [n] of a repeated field of varying length (int32, int64, enum), packed or not."""
    parts = [
        np.array([value], np.uint64).view(np.int64)
        if isinstance(value, int)
        else _unpack(np.frombuffer(value, np.uint8))
        for value in fields.get(number, [])
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _fixed(values: Iterable[Value], kind: str) -> np.ndarray:
    parts = [np.frombuffer(_bytes(value), kind) for value in values]
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a field is a number where bytes are expected")
    return value


def _unpack(packed: np.ndarray) -> np.ndarray:
    """The i64 [n] of varints one after the other, all at once: there may be a million."""
    if len(packed) < 2 * _LONGEST:  # a handful is quicker one by one
        view, at, few = memoryview(packed.tobytes()), 0, []
        while at < len(view):
            number, at = _varint(view, at)
            few.append(number)
        return np.array(few, np.uint64).view(np.int64)
    ends = np.flatnonzero(packed < 128)
    if len(packed) and (not len(ends) or ends[-1] != len(packed) - 1):
        raise ValueError("a message ends in the middle of a number")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    lengths = ends - starts + 1
    if len(ends) and lengths.max() > _LONGEST:
        raise ValueError("a number has more than 64 bits")
    numbers = (packed[starts] & 127).astype(np.uint64)
    left = np.flatnonzero(lengths > 1)
    for byte in range(1, _LONGEST):
        if not len(left):
            break
        numbers[left] |= (packed[starts[left] + byte] & 127).astype(np.uint64) << np.uint64(
            7 * byte
        )
        left = left[lengths[left] > byte + 1]
    return numbers.view(np.int64)


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    if at < len(view) and view[at] < 128:  # as most are
        return view[at], at + 1
    number = 0
    for byte, part in enumerate(view[at : at + _LONGEST]):
        number |= (part & 127) << (7 * byte)
        if part < 128:
            return number % 2**64, at + byte + 1
    if at + _LONGEST > len(view):
        raise ValueError("a message ends in the middle of a number")
    raise ValueError("a number has more than 64 bits")
