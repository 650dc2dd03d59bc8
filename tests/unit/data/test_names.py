"""Names: one normal form, valid text for any bytes."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data import names


def test_composed_and_decomposed_names_have_one_key():
    assert names.name_key("cafe\u0301") == names.name_key("caf\u00e9") == "caf\u00e9"
    assert names.name_key("Cafe") != names.name_key("cafe")


def test_latin1_name_is_escaped():
    assert names.printable_name(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert names.printable_name("caf\u00e9") == "caf\u00e9"


@given(st.binary(max_size=8))
def test_any_name_is_printable(name: bytes):
    names.printable_name(os.fsdecode(name)).encode()


@given(st.text(st.characters(codec=None), max_size=4))
def test_replaced_text_is_valid_and_valid_text_is_kept(text: str):
    replaced = names.replace_surrogates(text)
    assert names.is_valid_text(replaced) and len(replaced) == len(text)
    assert (replaced == text) == names.is_valid_text(text)


def test_long_list_is_cut():
    assert names.list_some("abc") == "a, b, c"
    assert names.list_some("abcd") == "a, b, c, ..."
