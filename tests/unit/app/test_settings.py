"""What may be chosen on the page."""

from __future__ import annotations

import pytest

from modality_forcing.app import settings
from modality_forcing.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ensemble": 10**9}, r"ensemble is 1000000000; choose a whole number from 1 to 16"),
        ({"steps": 2.5}, r"steps is 2.5; choose a whole number from 0 to 100"),
        ({"strength": float("nan")}, r"strength is nan; choose from 0 to 1"),
        ({"log2_alpha": "3"}, r"log2 alpha is '3'"),
        ({"fov": 180}, r"fov is 180"),
        ({"condition_guidance": 9}, r"condition guidance is 9; choose from 0 to 8"),
        ({"seed": -1}, r"seed is -1"),
        ({"colormap": "nothing"}, r"colormap is 'nothing'; choose one of spectral, plasma, gray$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_are_not_offered_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        settings.parse_settings(values)


def test_whole_numbers_may_come_as_floats():
    chosen = settings.parse_settings({"steps": 4.0, "ensemble": 2.0, "fov": 60.0})
    assert (chosen.steps, chosen.ensemble) == (4, 2)
    assert isinstance(chosen.steps, int)
