"""`mforce evaluate`: one mode per call, and no option is silently ignored."""

from __future__ import annotations

import argparse

import pytest

from modality_forcing.commands import evaluate
from modality_forcing.errors import UserError


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    "arguments, use",
    [
        (("--pred", "p", "--target", "g"), "arrays"),
        (("--checkpoint", "c"), "own records"),
        (("--checkpoint", "c", "--benchmark", "nyuv2"), "a benchmark"),
        (("--checkpoint", "c", "--trajectory-sweep", "log2_alpha:0..1"), "a trajectory sweep"),
    ],
)
def test_options_select_the_mode(arguments, use):
    assert use in evaluate.parse_mode(parsed(*arguments)).name


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "nothing to score"),
        (("--checkpoint", "c", "--pred", "p"), "two things"),
        (("--benchmark", "nyuv2"), "nothing to score"),
        (
            ("--checkpoint", "c", "--benchmark", "nyuv2", "--trajectory-sweep", "log2_alpha:0..1"),
            "cannot be combined with",
        ),
        (
            ("--checkpoint", "c", "--benchmark", "nyuv2", "--examples", "3"),
            "--examples is not for a benchmark",
        ),
        (
            ("--checkpoint", "c", "--trajectory-sweep", "log2_alpha:0..1", "--protocol", "moge"),
            "--protocol is not for a trajectory sweep",
        ),
        (("--checkpoint", "c", "--strict"), "--strict is not for a checkpoint's own records"),
        (
            ("--checkpoint", "c", "--ensemble", "3"),
            "--ensemble is not for a checkpoint's own records",
        ),
        (("--pred", "p", "--target", "g", "--seed", "0"), "--seed is not for arrays"),
        (("--checkpoint", "c", "--tensor", "3"), "3 devices cannot share an example"),
        (("--checkpoint", "c", "--benchmark", "nyuv2"), "--root is missing"),
        (
            ("--checkpoint", "c", "--benchmark", "nyuv2", "--condition-guidance", "depth=2"),
            "--condition-guidance names 'depth', which is never given here",
        ),
        (
            (
                "--checkpoint",
                "c",
                "--benchmark",
                "nyuv2",
                "--root",
                "r",
                "--ensemble-mode",
                "affine",
            ),
            "for several samples",
        ),
    ],
)
def test_incompatible_options_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate.main(parsed(*arguments))


def test_every_option_belongs_to_a_mode():
    options = set(vars(parsed())) - {"json", "out"}
    assert options == {name for mode in evaluate.MODES for name in mode.options}
