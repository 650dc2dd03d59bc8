"""Tasks: the names of the first release mean what they did, all others follow from letters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.tasks import TASKS, Task, conversion, parse

THREE = ("image", "depth", "normals")


def test_named_tasks():
    two = THREE[:2]
    assert parse("t2i", two) == Task("t2i", (), ("image",)) == parse("t2i", ("image",))
    assert parse("joint", two) == Task("joint", (), two)
    assert parse("i2d", two) == Task("i2d", ("image",), ("depth",))
    assert parse("d2i", two) == Task("d2i", ("depth",), ("image",))
    assert parse("partial", two) == Task("partial", ("depth",), ("image",))
    assert parse("partial", THREE).asked == ("image", "normals")


@given(st.lists(st.sampled_from(["", "given", "asked"]), min_size=3, max_size=3))
def test_letters_name_any_condition_and_any_rest(roles):
    given_, asked = (
        tuple(n for n, role in zip(THREE, roles, strict=True) if role == which)
        for which in ("given", "asked")
    )
    name = conversion(given_, asked)
    if given_ and asked:
        assert parse(name, THREE) == Task(name, given_, asked)
    else:
        with pytest.raises(UserError, match="unknown mode"):
            parse(name, THREE)


def test_order_of_letters_does_not_matter():
    assert parse("ni2d", THREE).given == parse("in2d", THREE).given == ("image", "normals")


@pytest.mark.parametrize(
    "name", ["i2i", "2d", "i2", "ii2d", "i2x", "i", "", "i2d2n", "image2depth"]
)
def test_unknown_names_are_refused_with_the_known(name):
    listed = f"choose one of {', '.join(TASKS)}, or GIVEN2ASKED with letters of i, d, n"
    with pytest.raises(UserError, match=f"unknown mode {name!r}; {listed}"):
        parse(name, THREE)


def test_equal_first_letters_have_no_tasks_of_letters():
    with pytest.raises(UserError, match="unknown mode 'd2n'"):
        parse("d2n", ("image", "depth", "normals", "noise"))
