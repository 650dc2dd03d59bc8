"""Hashed words: equal in every process, for any language, within range."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.encoders.text import TextEncoder
from modality_forcing.encoders.words import HashedWordTokenizer, words
from modality_forcing.errors import UserError
from modality_forcing.synthetic.source import Scenes


def encoded(encoder: TextEncoder, caption: str) -> list[int]:
    text = encoder.encode(caption)
    return text["tokens"][text["mask"]].tolist()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A red cube, left of 2 BLUE spheres.",
            ["a", "red", "cube", "left", "of", "2", "blue", "spheres"],
        ),
        ("don't Don\u2019t 'quoted'", ["dont", "dont", "quoted"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("\uff26\uff35\uff4c\uff4c\uff11\uff12", ["full12"]),
        ("赤い球か\u3099\uff12個", ["赤", "い", "球", "が", "2", "個"]),
        (
            "लाल गोला",
            ["लाल", "गोला"],
        ),  # vowel signs are combining marks and must not split the word
        ("красный КУБ", ["красный", "куб"]),
        ("สีแดง", ["สี", "แ", "ด", "ง"]),
        ("빨간 공", ["빨간", "공"]),
        ("", []),
        ("\u0301 ... !? 🙂", []),
    ],
)
def test_words_of_many_languages(caption: str, expected: list[str]):
    assert list(words(caption)) == expected


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_ascii_shortcut_gives_the_same_words(caption: str):
    """A non-ASCII letter makes `words` take the general path."""
    assert list(words(caption)) == list(words(f"{caption} \u00e9"))[:-1]


@given(st.text(max_size=80), st.integers(1, 20), st.integers(1, 5000))
def test_shapes_and_range(caption: str, tokens: int, vocab_size: int):
    text = HashedWordTokenizer(tokens, vocab_size).encode(caption)
    assert text["tokens"].shape == text["mask"].shape == (tokens,)
    assert text["tokens"].dtype == np.int32 and text["mask"].dtype == np.bool_
    assert np.all((text["tokens"] >= 0) & (text["tokens"] < vocab_size))
    assert np.all(text["tokens"][~text["mask"]] == 0)
    count = int(text["mask"].sum())
    assert count == min(tokens, len(list(words(caption)))) and np.all(text["mask"][:count])


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_case_does_not_matter(caption: str):
    assert encoded(HashedWordTokenizer(), caption.upper()) == encoded(
        HashedWordTokenizer(), caption.lower()
    )


def test_truncates_after_the_last_token():
    caption = " ".join(f"w{i}" for i in range(20))
    assert (
        encoded(HashedWordTokenizer(tokens=5), caption)
        == encoded(HashedWordTokenizer(tokens=20), caption)[:5]
    )


def test_null_has_no_token_and_every_structure_is_equal():
    null, some = HashedWordTokenizer().null(), HashedWordTokenizer().encode("a cube")
    assert not null["mask"].any() and null.keys() == some.keys()
    assert all(
        null[key].shape == some[key].shape and null[key].dtype == some[key].dtype for key in null
    )


def test_row_is_blake2b():
    expected = (
        int.from_bytes(blake2b(b"red", digest_size=8, person=b"caption").digest(), "little") % 2048
    )
    assert encoded(HashedWordTokenizer(), "RED") == [expected]


def test_words_of_synthetic_captions_have_distinct_rows():
    source = Scenes(resolution=8)
    known = {word for index in range(400) for word in words(source[index].caption)}
    assert len(known) > 40
    assert len({HashedWordTokenizer().row(word) for word in known}) == len(known)


def test_rows_are_uniform():
    counts = np.bincount(
        [HashedWordTokenizer(vocab_size=64).row(f"word{i}") for i in range(6400)], minlength=64
    )
    # 63 degrees of freedom: mean 63, standard deviation 11.2.
    chi2 = float(((counts - 100) ** 2 / 100).sum())
    assert 25 < chi2 < 120


def test_same_in_processes_with_different_hash_seeds():
    caption = "two großé red cubes 立方体 behind a sphere"
    program = (
        "import json; from modality_forcing.encoders.words import HashedWordTokenizer;"
        f"text = HashedWordTokenizer().encode({caption!r});"
        "print(json.dumps(text['tokens'].tolist()))"
    )
    here = HashedWordTokenizer().encode(caption)["tokens"].tolist()
    for hash_seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == here


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"vocab_size": 0}])
def test_empty_sizes_are_refused(wrong: dict[str, int]):
    with pytest.raises(UserError, match="at least 1"):
        HashedWordTokenizer(**wrong)
