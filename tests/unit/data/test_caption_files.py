"""Caption files: several captions a name, names in any form, and never another error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.caption_files import CaptionFolder, match, read_caption_table
from modality_forcing.errors import UserError

KEYS = {"a", "b", "caf\u00e9"}


def table(path: Path, content: str):
    path.write_text(content, encoding="utf-8")
    return read_caption_table(path, KEYS)


def test_several_captions_of_a_name_are_kept_in_order(tmp_path: Path):
    lines = table(tmp_path / "c.txt", "a.png\tone\nb\tblue\na\ttwo\na.png\tone\na\t\n")
    assert lines("a") == ("one", "two") and lines("b") == ("blue",) and lines("c") == ()
    listed = table(tmp_path / "c.json", json.dumps({"a": ["one", "two"], "b.jpg": "blue"}))
    assert listed.captions == lines.captions and not listed.notes


@pytest.mark.parametrize("mark", "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e")
def test_only_line_ends_cut_captions(tmp_path: Path, mark: str):
    content = f"a\tfirst{mark}b\tsecond\r\nb\tblue\rcafe\u0301\tred\n"
    captions = table(tmp_path / "c.txt", content)
    assert captions("a") == (f"first{mark}b\tsecond",)
    assert captions("b") == ("blue",) and captions("caf\u00e9") == ("red",)


def test_names_of_no_image_are_counted(tmp_path: Path):
    captions = table(tmp_path / "c.txt", "a\tred\nA\tgreen\nz.png\tblue\n")
    (note,) = captions.notes
    assert captions("a") == ("red",) and "2 of 3 captions name no image here (A, z.png)" in note


def test_half_characters_are_replaced_and_counted(tmp_path: Path):
    captions = table(tmp_path / "c.json", '{"a": "party \\ud83c", "b": "\\ud83c\\udf89"}')
    (note,) = captions.notes
    assert captions("a") == ("party \ufffd",) and captions("b") == ("\U0001f389",)
    assert "1 captions hold half a character" in note and "(a)" in note


def test_names_match_with_and_without_ending():
    assert match("a.JPG", KEYS) == "a" and match("cafe\u0301.png", KEYS) == "caf\u00e9"
    assert match("a.md", KEYS) == "a.md" and match("b", KEYS) == "b"


def test_folder_of_texts(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a gray\nwall \n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    captions = CaptionFolder({"a": tmp_path / "a.txt", "b": tmp_path / "b.txt"})
    assert captions("a") == ("a gray wall",) and captions("none") == ()
    with pytest.raises(UserError, match="not text in UTF-8"):
        captions("b")


@settings(deadline=None, max_examples=50)
@given(
    st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from(["c.txt", "c.json"]),
    st.none() | st.tuples(st.integers(0, 40), st.integers(0, 255)),
)
def test_any_bytes_give_captions_or_one_line(tmp_path_factory, content, name, flip):
    path = tmp_path_factory.getbasetemp() / name
    if flip:  # a flipped byte in, or a truncation of, a sound file
        sound = b'{"a": ["red \\ud83d", "wall"], "b": "x"}' if "json" in name else b"a\tred\nb\tx\n"
        at = flip[0] % len(sound)
        content = sound[:at] + bytes([flip[1]]) + sound[at + 1 :] if flip[1] else sound[:at]
    path.write_bytes(content)
    try:
        captions = read_caption_table(path, KEYS)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert set(captions.captions) <= KEYS
        for texts in captions.captions.values():
            assert "".join(texts).encode() is not None
