"""The benchmark registry: every entry, and unknown names."""

from __future__ import annotations

import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.native_layouts import layout_patterns
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark

FIVE = ("nyuv2", "kitti", "eth3d", "scannet", "diode")


def test_both_suites_are_registered():
    assert set(BENCHMARKS) == {*FIVE, "ibims1", "gso", "sintel", "ddad", "spring", "hammer"}
    assert {name for name in BENCHMARKS if layout_patterns(name)} == set(FIVE)
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    assert len({benchmark.folder for benchmark in BENCHMARKS.values()}) == len(BENCHMARKS)


@pytest.mark.parametrize("name", FIVE)
def test_depth_range_needs_a_native_layout(name: str):
    least, most = BENCHMARKS[name].depth_range or (0, 0)
    assert 0 < least < most
    assert BENCHMARKS[name].range_masks_target == (name != "diode")


def test_sets_without_meters_are_marked():
    assert {name for name, benchmark in BENCHMARKS.items() if not benchmark.metric} == {
        "gso",
        "sintel",
        "spring",
    }


def test_known_name_is_found():
    assert find_benchmark("nyuv2").title == "NYUv2"


@pytest.mark.parametrize(
    ("name", "near"),
    [("nyu", "nyuv2"), ("NYUv2", "nyuv2"), ("iBims-1", "ibims1"), ("DDAD", "ddad")],
)
def test_unknown_name_suggests_the_nearest(name: str, near: str):
    with pytest.raises(UserError, match=f"did you mean {near}[?]") as caught:
        find_benchmark(name)
    assert "eth3d" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_name_lists_all_names():
    with pytest.raises(UserError) as caught:
        find_benchmark("zzz")
    assert "did you mean" not in str(caught.value) and all(
        name in str(caught.value) for name in BENCHMARKS
    )
