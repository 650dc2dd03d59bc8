"""Option types and overrides on the command line."""

from __future__ import annotations

import argparse

import pytest

from modality_forcing.commands.arguments import finite_float, positive_int, split_overrides


def test_overrides_are_split_off_in_both_spellings():
    arguments = ["train", "--config.train.steps=5", "--config", "c.py"]
    arguments += ["--config.train.init_from", "a=b", "--config.sample.timestep_shift", "-1"]
    rest, overrides = split_overrides(arguments, argparse.ArgumentParser())
    assert rest == ["train", "--config", "c.py"]
    assert overrides.pop("sample.timestep_shift") == "-1"
    assert overrides == {"train.steps": "5", "train.init_from": "a=b"}


@pytest.mark.parametrize("text", ["1", "12", " 7 "])
def test_positive_int(text):
    assert positive_int(text) == int(text)


@pytest.mark.parametrize(
    ("convert", "text"),
    [(positive_int, "0"), (positive_int, "x"), (finite_float, "inf"), (finite_float, "")],
)
def test_invalid_numbers_are_refused(convert, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        convert(text)
