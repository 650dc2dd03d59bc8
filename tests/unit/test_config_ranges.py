"""Numbers of a config out of their ranges are refused by key, with the range."""

from __future__ import annotations

import math

import pytest

from modality_forcing.config_ranges import check_numbers
from modality_forcing.errors import UserError


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"learning_rate": 0.0}}, r"train\.learning_rate is 0\.0; it must be above 0"),
        ({"train": {"b1": 1.0}}, r"train\.b1 is 1\.0; it must be at least 0 and below 1"),
        ({"train": {"t_min": math.nan}}, r"train\.t_min is nan; it must be above 0 and at most 1"),
        (
            {"sample": {"t_min": 0.3}},
            r"sample\.t_min is 0\.3; it must be above 0 and at most 0\.05",
        ),
        ({"train": {"steps": 0}}, r"train\.steps is 0; it must be at least 1"),
        ({"sample": {"steps": 10**6}}, r"sample\.steps is 1000000; it must be from 1 to 10000"),
        ({"sample": {"task_steps": {"i2d": 0}}}, r"task_steps\.i2d is 0; it must be from 1"),
        ({"mesh": {"tensor": -1}}, r"mesh\.tensor is -1; it must be at least 1"),
        (
            {"sample": {"condition_guidance": {"depth": -1.0}}},
            r"sample\.condition_guidance\.depth is -1\.0; it must be from 0 to 100",
        ),
        ({"train": {"base": math.inf}}, r"train\.base is inf; it must be a finite number"),
    ],
)
def test_number_out_of_range_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        check_numbers(tree)


def test_numbers_in_range_pass():
    check_numbers({"mesh": {"fsdp": -1}, "train": {"t_min": 0.3, "steps": 1, "distill": False}})
    for weights in ({}, {"depth": 0.0, "image": 3.0}):
        check_numbers({"sample": {"condition_guidance": weights}})
