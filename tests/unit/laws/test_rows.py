"""Files that hold no table are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modality_forcing.errors import UserError
from modality_forcing.laws.rows import read


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", "has no rows"),
        ("a.csv", "n,loss\n", "has no rows"),
        ("a.csv", "n,loss\n1,2,3\n", "line 2 has more cells than the header"),
        ("a.jsonl", "[1]\n", "line 1: is not a JSON object"),
        ("a.jsonl", '{"a": 1}\n{', "line 2: is not a JSON object"),
        ("a.txt", "n loss\n", "give .csv or .jsonl"),
        ("a.csv", b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_files_without_a_table_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)
    with pytest.raises(UserError, match="no such file; name a table"):
        read(tmp_path / "none.csv")


def written(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.CSV", "n,loss\n1,2\n"),
        ("a", "n, loss \r\n1, 2\r\n"),
        ("a.csv", 'n, "loss"\n"1", "2"\n'),
        ("a.csv", b"\xef\xbb\xbfn,loss\n1,2"),
        ("a.JSONL", '{"n": 1, "loss": 2}'),
        ("a", '\n {"n": 1, "loss": "2"}\r\n'),
    ],
)
def test_name_and_layout_of_a_table_may_differ(tmp_path, name, content):
    rows = read(written(tmp_path, name, content))
    assert rows.numbers("n").tolist() == [1] and rows.numbers("loss").tolist() == [2]


def test_odd_line_separators_are_text(tmp_path):
    note = "a\u2028b\u0085c\x1cd"
    rows = read(written(tmp_path, "a.csv", f"n,note\n1,{note}\n2,b\n"))
    assert [row["note"] for row in rows.cells] == [note, "b"] and rows.lines == (2, 3)
    lines = [json.dumps({"n": i, "note": note}, ensure_ascii=False) for i in (1, 2)]
    rows = read(written(tmp_path, "a.jsonl", "\n\n".join(lines)))
    assert rows.numbers("n").tolist() == [1, 2] and rows.lines == (1, 3)


def test_cell_of_a_config_dump_is_read(tmp_path):
    text = "n,config\n1," + '"' + "x, " * 100_000 + '"\n2,y\n'
    assert read(written(tmp_path, "a.csv", text)).numbers("n").tolist() == [1, 2]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "loss,n,loss\n1,2,3\n", "a.csv: column 'loss' is there 2 times; fix"),
        ("a.csv", 'n,loss\n1,"2\n3,4\n', "unexpected end of data"),
        ("a.jsonl", '{"loss": 1, "n": 2, "loss": 3}', "line 1: .*key 'loss' is there 2 times"),
        ("a.jsonl", '{"a": {"b": 1}, "a.b": 2}', "line 1: .*column 'a.b' is there 2 times"),
        ("a.jsonl", '{}\n{"n": ' + "9" * 400 + "}", "line 2: .*too large"),
        ("a.jsonl", '{"n": ' + "[" * 200_000, "line 1: .*nested levels"),
    ],
)
def test_ambiguous_and_endless_values_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as raised:
        read(written(tmp_path, name, content))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("value", [True, False, None, [1], {}, "x" * 1000])
def test_only_numbers_are_numbers(tmp_path, value):
    rows = read(written(tmp_path, "a.jsonl", json.dumps({"n": value})))
    with pytest.raises(UserError, match=r"line 1: n is .*, not a number") as raised:
        rows.numbers("n")
    assert len(str(raised.value)) < 300
