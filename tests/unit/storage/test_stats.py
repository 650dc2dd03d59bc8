"""Data set statistics: parts merge, minimum and maximum are exact, quantiles to 0.6%."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.data.records import Record
from modality_forcing.storage.stats import QUANTILES, DatasetStats
from modality_forcing.synthetic.source import Scenes


def records() -> list[Record]:
    scenes = Scenes(resolution=32)
    found = [scenes[index] for index in range(6)]
    nothing = np.zeros((32, 32), np.bool_)
    found[2] = replace(
        found[2], valid=nothing, caption="", intrinsics=np.full((3, 3), np.nan, np.float32)
    )
    found[4] = replace(
        found[4], **{name: getattr(found[4], name)[:20] for name in ("image", "depth", "valid")}
    )
    return found


def stats_of(of: list[Record]) -> DatasetStats:
    counted = DatasetStats()
    for record in of:
        counted.add(record)
    return counted


def test_summary():
    summary = stats_of(records()).summary()
    assert summary["records"] == 6 and summary["without_depth"] == 1
    assert summary["with_caption"] == 5 and summary["with_intrinsics"] == 5
    assert summary["sizes"] == {"32 x 32": 5, "32 x 20": 1}
    depth = np.concatenate([record.depth[record.valid] for record in records()])
    pixels = sum(record.depth.size for record in records())
    assert summary["valid_fraction"] == depth.size / pixels
    assert (summary["depth"]["min"], summary["depth"]["max"]) == (depth.min(), depth.max())
    for q in QUANTILES:
        exact = float(np.quantile(depth, q, method="inverted_cdf"))
        assert abs(summary["depth"]["quantiles"][f"{q:g}"] / exact - 1) < 6e-3
    fractions = [record.valid.mean() for record in records() if record.valid.any()]
    for q, fraction in summary["valid_fraction_of_records"].items():
        assert (
            fraction
            == np.floor(100 * np.quantile(fractions, float(q), method="inverted_cdf")) / 100
        )


def test_median_is_the_lower_of_two_middle_values():
    record = replace(
        records()[0], valid=np.ones((32, 32), np.bool_), depth=np.ones((32, 32), np.float32)
    )
    record.depth[:16] = 8
    assert abs(stats_of([record]).summary()["depth"]["median"] - 1) < 0.01


def test_full_map_has_fraction_one():
    record = replace(
        records()[0], valid=np.ones((32, 32), np.bool_), depth=np.ones((32, 32), np.float32)
    )
    assert stats_of([record]).summary()["valid_fraction_of_records"]["0.5"] == 1


@pytest.mark.parametrize("cut", range(7))
def test_merged_parts_equal_the_undivided_job(cut: int):
    one, other = stats_of(records()[:cut]), stats_of(records()[cut:])
    other.merge(DatasetStats.from_json(json.loads(json.dumps(one.to_json()))))
    whole = stats_of(records())
    assert other.to_json() == whole.to_json()
    assert other.summary() == whole.summary()


def test_summary_without_records():
    summary = DatasetStats().summary()
    assert (
        summary["records"] == 0
        and summary["depth"] is None
        and summary["valid_fraction_of_records"] is None
    )
    json.dumps(summary)


def test_rare_sizes_are_summed_up():
    counted = DatasetStats()
    for width in range(1, 13):
        counted.sizes[f"{width} x 5"] += 20 - width
    summary = counted.summary()["sizes"]
    assert len(summary) == 9 and summary["1 x 5"] == 19 and summary["others"] == 11 + 10 + 9 + 8


@pytest.mark.parametrize(
    "content",
    [
        {},
        {**DatasetStats().to_json(), "depth_bins": {"x": 1}},
        {**DatasetStats().to_json(), "records": "many"},
    ],
)
def test_damaged_content_is_an_error(content: dict):
    with pytest.raises((KeyError, TypeError, ValueError)):
        DatasetStats.from_json(content)
