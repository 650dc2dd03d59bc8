"""Published numbers are given for their own protocol and for no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modality_forcing.evaluation.protocols import MOGE, protocol
from modality_forcing.evaluation.published import STUDY_SETS, reported, reported_study


def test_the_papers_own_row():
    found = {row.method: row for row in reported("nyuv2", MOGE)}
    assert len(found) == 7
    assert found["Modality Forcing (FLUX.2)"][1:] == pytest.approx((0.0252, 0.989))
    assert "MoGe-2 (discriminative)" not in {
        row.method for row in reported("scannet", MOGE)
    }  # it reports none
    assert reported("sintel", MOGE) == []


@pytest.mark.parametrize(
    "other",
    [
        protocol("marigold"),
        protocol("moge", "scale"),
        replace(MOGE, strict=True),
        replace(MOGE, depth_range=(0.1, 10.0)),
    ],
)
def test_another_protocol_gets_none(other):
    assert reported("nyuv2", other) == []
    assert reported_study(STUDY_SETS, other, "square", 256) == []


def test_the_study_is_of_four_sets_at_256():
    rows = reported_study(STUDY_SETS[::-1], MOGE, "square", 256)
    assert [(row.absrel, row.delta1) for row in rows] == [
        (0.057, 0.958),
        (0.051, 0.963),
        (0.044, 0.971),
    ]
    assert reported_study((*STUDY_SETS, "kitti"), MOGE, "square", 256) == []
    assert (
        reported_study(STUDY_SETS, MOGE, "moge", 256)
        == []
        == reported_study(STUDY_SETS, MOGE, "square", 128)
    )
