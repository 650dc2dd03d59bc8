"""Tallies: parts add up to the whole, extremes are exact, quantiles right to the stated precision."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.data.records import Record
from modality_forcing.storage.stats import QUANTILES, Tally
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


def tally(of: list[Record]) -> Tally:
    counted = Tally()
    for record in of:
        counted.add(record)
    return counted


def test_what_is_counted():
    told = tally(records()).summary()
    assert told["records"] == 6 and told["without_depth"] == 1
    assert told["with_caption"] == 5 and told["with_intrinsics"] == 5
    assert told["sizes"] == {"32 x 32": 5, "32 x 20": 1}
    known = np.concatenate([record.depth[record.valid] for record in records()])
    pixels = sum(record.depth.size for record in records())
    assert told["valid_fraction"] == known.size / pixels
    assert (told["depth"]["least"], told["depth"]["most"]) == (known.min(), known.max())
    for q in QUANTILES:
        exact = float(np.quantile(known, q, method="inverted_cdf"))
        assert abs(told["depth"]["quantiles"][f"{q:g}"] / exact - 1) < 6e-3
    shares = [record.valid.mean() for record in records() if record.valid.any()]
    for q, share in told["valid_fraction_of_records"].items():
        assert share == np.floor(100 * np.quantile(shares, float(q), method="inverted_cdf")) / 100


def test_the_lower_of_two_middles_is_the_median():
    record = replace(
        records()[0], valid=np.ones((32, 32), np.bool_), depth=np.ones((32, 32), np.float32)
    )
    record.depth[:16] = 8
    assert abs(tally([record]).summary()["depth"]["median"] - 1) < 0.01


def test_a_full_map_counts_as_full():
    record = replace(
        records()[0], valid=np.ones((32, 32), np.bool_), depth=np.ones((32, 32), np.float32)
    )
    assert tally([record]).summary()["valid_fraction_of_records"]["0.5"] == 1


@pytest.mark.parametrize("cut", range(7))
def test_parts_add_up(cut: int):
    one, other = tally(records()[:cut]), tally(records()[cut:])
    other.merge(Tally.from_json(json.loads(json.dumps(one.to_json()))))
    whole = tally(records())
    assert other.to_json() == whole.to_json()
    assert other.summary() == whole.summary()


def test_nothing_at_all():
    told = Tally().summary()
    assert (
        told["records"] == 0 and told["depth"] is None and told["valid_fraction_of_records"] is None
    )
    json.dumps(told)


def test_many_sizes_are_summed_up():
    counted = Tally()
    for width in range(1, 13):
        counted.sizes[f"{width} x 5"] += 20 - width
    told = counted.summary()["sizes"]
    assert len(told) == 9 and told["1 x 5"] == 19 and told["others"] == 11 + 10 + 9 + 8


@pytest.mark.parametrize(
    "content",
    [{}, {**Tally().to_json(), "depths": {"x": 1}}, {**Tally().to_json(), "records": "many"}],
)
def test_damage_is_an_error(content: dict):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Tally.from_json(content)
