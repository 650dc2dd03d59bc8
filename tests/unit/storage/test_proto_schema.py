"""Message classes from a schema: the bytes of the documentation, and incomplete messages."""

from __future__ import annotations

import pytest

from modality_forcing.storage.proto_schema import define_messages, parse

MESSAGES = define_messages("""
message Test1 { optional int32 a = 1; }
message Test2 { optional string b = 2; }
message Test3 { optional Test1 c = 3; }
message Test5 { repeated int32 f = 6 [packed = true]; }
""")


def test_documentation_examples():
    """protobuf.dev, Encoding."""
    assert parse(MESSAGES["Test1"], bytes.fromhex("089601")).a == 150
    assert parse(MESSAGES["Test2"], bytes.fromhex("120774657374696e67")).b == "testing"
    assert parse(MESSAGES["Test3"], bytes.fromhex("1a03089601")).c.a == 150
    assert list(parse(MESSAGES["Test5"], bytes.fromhex("3206038e029ea705")).f) == [3, 270, 86942]
    assert MESSAGES["Test5"](f=[3, 270, 86942]).SerializeToString().hex() == "3206038e029ea705"


def test_unpacked_numbers_are_read():
    assert list(parse(MESSAGES["Test5"], b"\x30\x05\x30\x07").f) == [5, 7]


@pytest.mark.parametrize(
    "broken", [b"\x08", b"\x08\xff", b"\x12\x05abc", b"\x09\x00", b"\xff" * 11]
)
def test_incomplete_message_is_a_value_error(broken: bytes):
    with pytest.raises(ValueError, match="not a Test1 message"):
        parse(MESSAGES["Test1"], broken)
