"""Lines, JSON and CSV: what is read, and what is refused with a reason."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing import text_io
from modality_forcing.errors import UserError

NUMBERS = st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


def test_lines_end_at_line_breaks_only():
    text = "a\u2028b\u0085c\x0b\x0c\x1cd\re\r\nf\n\ng"
    assert text_io.split_lines(text) == ["a\u2028b\u0085c\x0b\x0c\x1cd", "e", "f", "", "g"]
    assert text_io.split_lines("a\n") == ["a"] and text_io.split_lines("") == []


@given(VALUES)
def test_json_that_python_writes_is_read(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert text_io.parse_json(text) == value


def test_infinities_are_read_where_they_may_be():
    assert text_io.parse_json("[-Infinity, 1e400]", finite=False) == [-math.inf, math.inf]
    assert math.isnan(text_io.parse_json("NaN", finite=False))
    assert text_io.parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "Expecting value: column 1"),
        ('{"a": 1,\n}', "line 2, column 1|line 1, column 8"),  # Python 3.13 names the comma
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "key 'b' is there 2 times"),
        ("1" * 400, r"the number 1{40}\.\.\. is too large"),
        ("-1" + "0" * 5000, "is too large"),
        ("1e400", "the number 1e400 is too large"),
        ("[NaN]", "NaN is not a number of JSON"),
        ("[" * 101 + "]" * 101, "more than 100 nested levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "more than 100 nested levels"),
        ('{"a":' * 200_000, "more than 100 nested levels|Expecting value"),
        ("[" * 200_000 + "]" * 200_000, "more than 100 nested levels"),
        ('["\\uD83d"]', "half of a surrogate pair"),
        ('{"\\ude00": 1}', "half of a surrogate pair"),
    ],
)
def test_other_json_is_refused(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        text_io.parse_json(text)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 120
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"a.json: is broken .*({reason}).*; mend it"):
        text_io.read_json(tmp_path / "a.json", what="is broken", hint="mend it")


def test_hundred_levels_are_read():
    value = text_io.parse_json("[" * 100 + "]" * 100)
    assert json.dumps(value) == "[" * 100 + "]" * 100


def test_other_types_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')  # a byte-order mark
    assert text_io.read_object(tmp_path / "a.json", hint="") == {"a": 1}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a JSON object"):
        text_io.read_object(tmp_path / "a.json", hint="")
    assert text_io.parse_number(3) == 3 and text_io.parse_number(0.5) == 0.5
    for other in (True, "1", None, [1], {"a": 1}):
        with pytest.raises(ValueError, match="is not a number"):
            text_io.parse_number(other)


def test_csv_has_cells_of_any_length():
    limit = csv.field_size_limit()
    long = "x," * 100_000
    text = f'\n a ,"b",\r1, "{long}\nz\u2028",\n2\n'
    assert text_io.parse_csv(text) == [
        (4, {"a": "1", "b": f"{long}\nz\u2028", "": ""}),
        (5, {"a": "2", "b": None, "": None}),
    ]
    assert csv.field_size_limit() == limit and text_io.parse_csv("") == []


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a,b, a\n1,2,3\n", "column 'a' is there 2 times"),
        ("a,b\n1,2,3\n", "line 2 has more cells than the header"),
        ('a,b\n1,2\n1,"2\n1,2\n', "line 4: unexpected end of data"),
    ],
)
def test_other_csv_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        text_io.parse_csv(text)


OBJECTS = st.dictionaries(TEXTS.filter(lambda key: key != "checksum"), VALUES, max_size=4)


@given(OBJECTS)
def test_verified_object_is_read_as_it_was_written(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(text_io.with_checksum(content), indent=1))
        assert text_io.read_verified(path, what="is damaged", hint="") == content


def test_checksum_is_of_what_json_keeps():
    one, other = {"a": [1, 2.5], "b": {"c": None}}, {"b": {"c": None}, "a": (1, 2.5)}
    assert text_io.json_checksum(one) == text_io.json_checksum(other)
    assert text_io.json_checksum(one) != text_io.json_checksum({**one, "a": [1, 2.50001]})
    assert text_io.json_checksum({2: 0, 10: 1}) == text_io.json_checksum({"10": 1, "2": 0})


@pytest.mark.parametrize("changes", [{"a": 2}, {"b": 0}, {"checksum": "x"}, {"checksum": 0}])
def test_object_that_is_not_that_of_its_checksum_is_refused(tmp_path, changes):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**text_io.with_checksum({"a": 1}), **changes}))
    with pytest.raises(UserError, match=r"a\.json: is odd \(its checksum differs\); do so"):
        text_io.read_verified(path, what="is odd", hint="do so")
    path.write_text('{"a": 1}')  # as earlier versions wrote it
    assert text_io.read_verified(path, what="is odd", hint="do so") == {"a": 1}


@pytest.mark.parametrize("value", [True, None, "1", -1, 0.5, 1.0, 1e300, math.nan, [1]])
def test_count_is_a_whole_number_of_0_or_more(value):
    assert text_io.parse_count(3) == 3
    with pytest.raises(ValueError, match="is not a count"):
        text_io.parse_count(value)


def test_text_is_a_text():
    assert text_io.parse_text("a") == "a"
    for value in (None, 1, ["a"]):
        with pytest.raises(ValueError, match="is not a text"):
            text_io.parse_text(value)


def test_long_lists_of_names_are_cut():
    assert text_io.list_some(["a", "b"]) == "a, b"
    assert text_io.list_some(list("abcde")) == "a, b, c and 2 more"
