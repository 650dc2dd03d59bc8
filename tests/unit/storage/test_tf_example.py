"""Serialized tf.train.Example: round trips, golden bytes, and damaged input."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.storage.tf_example import decode, encode

FLOATS = st.floats(width=32, allow_nan=False)
VALUES = st.one_of(
    st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    st.lists(FLOATS, min_size=1, max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
)


# Written by the hand-made serializer that 0.1.0 had: the bytes of shards must not change.
GOLDEN = {
    "size": [128, 2, -1, 2**63 - 1, -(2**63)],
    "image": [b"\xff\x00" * 3, b""],
    "near": [1.5, float("inf"), 0.125],
    "empty": [],
    "": [0],
    "Z": [0.0],
    "ü/𝄞": [b"x"],
}
GOLDEN_BYTES = bytes.fromhex(
    "0a98010a090a0012051a030a01000a0d0a015a120812060a04000000000a0b0a05656d70747912020a000a15"
    "0a05696d616765120c0a0a0a06ff00ff00ff000a000a180a046e6561721210120e0a0c0000c03f0000807f00"
    "00003e0a2c0a0473697a6512241a220a20800102ffffffffffffffffff01ffffffffffffffff7f8080808080"
    "80808080010a100a07c3bc2ff09d849e12050a030a0178"
)


def test_serialized_bytes_are_unchanged():
    assert encode(GOLDEN) == GOLDEN_BYTES
    assert decode(GOLDEN_BYTES) == GOLDEN


@given(st.dictionaries(st.text(max_size=20), VALUES, max_size=5))
def test_decode_inverts_encode(features: dict):
    assert decode(encode(features)) == features
    assert encode(dict(reversed(features.items()))) == encode(features)


def test_bytes_match_the_proto_files():
    """Worked out by hand from the .proto files: the three kinds of Feature as map entries."""
    image = b"\x0a\x05image" + b"\x12\x06" + b"\x0a\x04" + b"\x0a\x02\xff\x00"
    near = b"\x0a\x04near" + b"\x12\x08" + b"\x12\x06" + b"\x0a\x04" + np.float32(1.5).tobytes()
    size = b"\x0a\x04size" + b"\x12\x07" + b"\x1a\x05" + b"\x0a\x03" + b"\x80\x01" + b"\x02"
    entries = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in (image, near, size))
    whole = b"\x0a" + bytes([len(entries)]) + entries
    features = {"size": [128, 2], "image": [b"\xff\x00"], "near": [1.5]}
    assert encode(features) == whole
    assert decode(whole) == features


def test_unpacked_numbers_and_unknown_fields_are_read_too():
    """As older writers may put them: each number in a field of its own."""
    floats = b"\x12\x0a" + b"\x0d" + np.float32(2).tobytes() + b"\x0d" + np.float32(-1).tobytes()
    integers = b"\x1a\x0d" + b"\x08\x05" + b"\x08" + b"\xff" * 9 + b"\x01"
    unknown = b"\x50\x07" + b"\x5a\x01x" + b"\x65abcd" + b"\x69abcdefgh"

    def entry(name: bytes, value: bytes) -> bytes:
        content = b"\x0a\x01" + name + b"\x12" + bytes([len(value)]) + value
        return b"\x0a" + bytes([len(content)]) + content

    entries = entry(b"f", floats) + entry(b"i", integers) + unknown + entry(b"e", b"")
    assert decode(b"\x0a" + bytes([len(entries)]) + entries + unknown) == {
        "f": [2.0, -1.0],
        "i": [5, -1],
        "e": [],
    }


@given(st.binary(max_size=60))
def test_random_bytes_raise_only_value_error(junk: bytes):
    for content in (junk, b"\x0a" + bytes([len(junk)]) + junk):
        with contextlib.suppress(ValueError):
            decode(content)


@pytest.mark.parametrize("cut", range(1, 40))
def test_truncated_example_is_a_value_error(cut: int):
    whole = encode({"image": [b"x" * 30], "size": [3, 4]})
    with pytest.raises(ValueError, match="not a Example"):
        decode(whole[:-cut])


@pytest.mark.parametrize("values", [["text"], [2**63], [True], [None]])
def test_other_kinds_are_refused(values: list):
    with pytest.raises(ValueError, match=r"holds|range"):
        encode({"x": values})
