"""Option types and overrides on the command line."""

from __future__ import annotations

import argparse

import pytest

from modality_forcing import cli
from modality_forcing.commands.arguments import (
    finite_float,
    path_option,
    positive_int,
    split_overrides,
    weights,
)


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


def test_empty_paths_are_not_the_current_folder():
    assert str(path_option(".")) == "." and str(path_option("gs://b/c/")).startswith("gs://b")
    with pytest.raises(argparse.ArgumentTypeError, match="is empty: name a path"):
        path_option("")


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("prepare", "--list", "--list-datasets"),
        ("prepare", "--part=0/2", "--shard"),
        ("prepare", "--max-bad=0", "--max-errors"),
        ("encode", "--part=0/2", "--shard"),
        ("sweep", "--part=0/2", "--shard"),
        ("evaluate", "--truth=t.npz", "--target"),
        ("evaluate", "--sweep=log2_alpha:0..1", "--trajectory-sweep"),
        ("evaluate", "--list=l.txt", "--frame-list"),
        ("evaluate", "--pictures=8", "--save-images"),
        ("sample", "--resize-mode=stretch", "--fit"),
    ],
)
def test_old_options_are_refused_with_the_new_ones(command, old, new, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, old])
    assert exit_.value.code == 2
    assert f"{old.partition('=')[0]} is now {new};" in capsys.readouterr().err


def test_weights_are_named_once():
    assert weights("image=0,depth=100") == {"image": 0.0, "depth": 100.0}
    for text, message in (
        ("depth", "'depth' is no weight: give a name and a number"),
        ("=2", "is no weight"),
        ("depth=two", "'two' is not a number"),
        ("image=2,image=3", "'image=2,image=3' gives image twice"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            weights(text)
