"""The wire format: the documentation's own examples, every length of number, and bytes that are no message."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.storage.protobuf import (
    content,
    doubles,
    floats,
    integer,
    integers,
    message,
    messages,
    parse,
)

signed = st.integers(-(2**63), 2**63 - 1)


def varint(number: int) -> bytes:
    number %= 2**64
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_the_examples_of_the_documentation():
    assert integer(parse(bytes.fromhex("089601")), 1) == 150
    assert bytes(content(parse(bytes.fromhex("120774657374696e67")), 2)) == b"testing"
    assert integer(message(parse(bytes.fromhex("1a03089601")), 3), 1) == 150
    np.testing.assert_array_equal(
        integers(parse(bytes.fromhex("3206038e029ea705")), 6), [3, 270, 86942]
    )
    assert integer(parse(bytes.fromhex("08feffffffffffffffff01")), 1) == 2**64 - 2


@given(st.lists(signed, max_size=40))
def test_numbers_come_back_packed_and_one_by_one(numbers: list[int]):
    packed = field(5, b"".join(varint(number) for number in numbers))
    single = b"".join(varint(5 << 3) + varint(number) for number in numbers)
    for written in (packed, single):
        found = integers(parse(written), 5)
        assert found.dtype == np.int64 and found.tolist() == numbers


@given(st.lists(st.floats(allow_nan=False), max_size=10))
def test_doubles_come_back_packed_and_one_by_one(numbers: list[float]):
    packed = field(2, struct.pack(f"<{len(numbers)}d", *numbers))
    single = b"".join(varint(2 << 3 | 1) + struct.pack("<d", number) for number in numbers)
    for written in (packed, single):
        np.testing.assert_array_equal(doubles(parse(written), 2), numbers)


def test_floats_come_back_packed_and_one_by_one():
    for written in (
        field(1, struct.pack("<2f", 1.5, -2)),
        b"".join(b"\x0d" + struct.pack("<f", one) for one in (1.5, -2)),
    ):
        np.testing.assert_array_equal(floats(parse(written), 1), np.array([1.5, -2], np.float32))


def test_fields_repeat_and_may_be_absent():
    fields = parse(field(4, field(1, b"a")) + field(9, b"") + field(4, field(1, b"b")))
    assert [bytes(content(one, 1)) for one in messages(fields, 4)] == [b"a", b"b"]
    assert bytes(content(message(fields, 4), 1)) == b"b"  # the last of several
    assert (
        messages(fields, 5) == [] and message(fields, 5) == {} and bytes(content(fields, 5)) == b""
    )
    assert integer(fields, 5) == 0 and integer(fields, 5, 7) == 7
    assert (
        len(doubles(fields, 5))
        == len(floats(fields, 5))
        == len(integers(fields, 5))
        == len(integers(fields, 9))
        == 0
    )


@pytest.mark.parametrize(
    "broken",
    [
        b"\x08",  # a number that does not come
        b"\x08\xff",  # one that does not end
        b"\x08" + b"\xff" * 10 + b"\x01",  # one of more than 64 bits
        b"\x12\x05abc",  # five bytes, of which three are there
        b"\x09\x00\x00",  # a double of two bytes
        b"\x0b",  # a group
        b"\xff" * 11,
    ],
)
def test_what_is_no_message_is_refused(broken: bytes):
    with pytest.raises(ValueError, match=r"message|number"):
        parse(broken)


def test_fields_of_another_kind_are_refused():
    number, text = parse(b"\x08\x01"), parse(field(1, b"abc"))
    for ask in (content, messages, doubles, floats):
        with pytest.raises(ValueError, match="number"):
            ask(number, 1)
    with pytest.raises(ValueError, match="no integer"):
        integer(text, 1)
    for broken in (b"\xff", b"\xff" * 10 + b"\x01"):
        with pytest.raises(ValueError, match="number"):
            integers(parse(field(1, broken)), 1)
    with pytest.raises(ValueError, match="buffer size"):
        doubles(text, 1)
