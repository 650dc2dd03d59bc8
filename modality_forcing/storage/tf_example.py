"""The wire form of tf.train.Example, the message that most tools of the field read, without TensorFlow.

An Example holds named features, each a list of bytes, of 32-bit floats or of 64-bit integers. Source: tensorflow,
core/example/example.proto and feature.proto; the encoding is that of Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from modality_forcing.storage import protobuf

Feature = list[bytes] | list[float] | list[int]

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # the kinds of a Feature, by field number
_COUNTED = 2  # the wire type of whatever says its length
_UNSIGNED = 2**64


def encode(features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]]) -> bytes:
    """Returns an Example: the same bytes for the same features in any order.

    The first element of a list tells its kind; an empty list is a list of bytes. Raises ValueError for what is neither
    bytes, float nor int, or an integer of more than 64 bits.
    """
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _feature(features[name])))
        for name in sorted(features)
    )
    return _field(1, entries)


def decode(content: bytes) -> dict[str, Feature]:
    """Returns the features of an Example; of a name that comes twice the last is taken, and unknown fields are passed over.

    Raises ValueError for bytes that are no whole Example.
    """
    features: dict[str, Feature] = {}
    for listed in protobuf.messages(protobuf.parse(content), 1):
        for entry in protobuf.messages(listed, 1):
            features[bytes(protobuf.content(entry, 1)).decode()] = _values(
                protobuf.message(entry, 2)
            )
    return features


def _feature(values: Sequence[bytes] | Sequence[float] | Sequence[int]) -> bytes:
    first = values[0] if len(values) else b""
    if isinstance(first, bytes):
        return _field(
            _BYTES, b"".join(_field(1, value) for value in values if isinstance(value, bytes))
        )
    if isinstance(first, float):
        return _field(_FLOATS, _field(1, np.asarray(values, "<f4").tobytes()))
    if isinstance(first, int) and not isinstance(first, bool):
        return _field(
            _INTEGERS, _field(1, b"".join(_varint(_unsigned(int(value))) for value in values))
        )
    raise ValueError(f"a feature holds {type(first).__name__}, not bytes, float or int")


def _values(feature: protobuf.Fields) -> Feature:
    values: Feature = []
    for kind in feature:
        if kind not in (_BYTES, _FLOATS, _INTEGERS):
            continue
        listed = protobuf.message(feature, kind)
        if kind == _BYTES:
            values = [bytes(item) for item in listed.get(1, []) if not isinstance(item, int)]
        else:
            values = (protobuf.floats if kind == _FLOATS else protobuf.integers)(listed, 1).tolist()
    return values


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
