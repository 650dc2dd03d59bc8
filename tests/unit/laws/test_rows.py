"""Files that hold no table are refused."""

from __future__ import annotations

import pytest

from modality_forcing.errors import UserError
from modality_forcing.laws.rows import read


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", "has no rows"),
        ("a.csv", "n,loss\n", "has no rows"),
        ("a.csv", "n,loss\n1,2,3\n", "line 2: has more cells than the header"),
        ("a.jsonl", "[1]\n", "line 1: is not a JSON object"),
        ("a.jsonl", '{"a": 1}\n{', "line 2: is not a JSON object"),
        ("a.txt", "n loss\n", "give .csv or .jsonl"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_without_a_table_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.csv")
