"""Frame lists: the compact form round-trips, malformed lists are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.datasets.common.frame_names import read_list, read_name_list
from modality_forcing.errors import UserError

# Prefixes, and names that are not numbers.
WORD = st.text("abcdefgh_/", min_size=1, max_size=8)
NUMBER = st.integers(1, 6).flatmap(
    lambda digits: st.integers(0, 10**digits - 1).map(lambda number: f"{number:0{digits}}")
)


def compact(groups: list[tuple[str, list[str]]]) -> str:
    """Returns the compact list of prefix + item; consecutive numbers become a range."""
    lines = ["# a comment: 0-9", ""]
    for prefix, items in groups:
        runs: list[list[str]] = []
        for item in items:
            last = runs[-1][-1] if runs else ""
            follows = (
                item.isdigit()
                and last.isdigit()
                and len(item) == len(last)
                and int(item) == int(last) + 1
            )
            if follows:
                runs[-1].append(item)
            else:
                runs.append([item])
        lines.append(
            f"{prefix}: "
            + " ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
        )
    return "\n".join(lines) + "\n"


RUN = st.tuples(NUMBER, st.integers(1, 5)).map(
    lambda run: [
        f"{int(run[0]) + step:0{len(run[0])}}"
        for step in range(run[1])
        if int(run[0]) + step < 10 ** len(run[0])
    ]
)
ITEMS = st.lists(st.one_of(RUN, WORD.map(lambda word: [word])), min_size=1, max_size=5).map(
    lambda runs: [item for run in runs for item in run]
)


@given(st.lists(st.tuples(WORD, ITEMS), max_size=4))
def test_written_list_round_trips(groups: list[tuple[str, list[str]]]):
    assert list(read_list(compact(groups))) == [
        prefix + item for prefix, items in groups for item in items
    ]


def test_hand_written_list_is_read():
    text = "# source\ntest/bathroom/rgb_: 0045 0098-0101\n\neth/DSC_: 1_0 9-9\n"
    frames = [
        "test/bathroom/rgb_0045",
        *(f"test/bathroom/rgb_{number}" for number in ("0098", "0099", "0100", "0101")),
    ]
    assert read_list(text) == (*frames, "eth/DSC_1_0", "eth/DSC_9")


@pytest.mark.parametrize(
    "line",
    ["no items", "prefix:0001", "prefix: ", "prefix: 0005-0003", "prefix: 9-10", "prefix: 01-002"],
)
def test_line_of_another_form_is_refused(line: str):
    with pytest.raises(ValueError, match="not "):
        read_list(line)


def test_plain_list_is_read_line_by_line(tmp_path: Path):
    (tmp_path / "names.txt").write_text("# mine\n b/2 \r\n\na/1-3\n")
    assert read_name_list(tmp_path / "names.txt") == ("b/2", "a/1-3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"# none\n\n", "names no frames"),
        (b"a\nb\na\n", "'a' twice"),
    ],
)
def test_invalid_plain_list_is_one_line(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_name_list(path)
    assert (
        str(caught.value).startswith(f"{path}: ")
        and "; " in str(caught.value)
        and "\n" not in str(caught.value)
    )
