"""Statistics of a data set: image sizes, captions, and the distribution of depth and its coverage.

Statistics of parts merge into those of the whole, in any order. Minimum and maximum are exact.
Quantiles of depth come from a histogram with 64 bins an octave, to a relative error of 0.6%.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.text_io import parse_count, parse_number
from modality_forcing.tree import JsonObject

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 64  # an octave
_MAX_SIZES = 8  # listed in a summary
_COUNTS = ("records", "captions", "intrinsics", "pixels", "valid")
_HISTOGRAMS = ("sizes", "depth_bins", "valid_percents")


@dataclass
class DatasetStats:
    """Counts of the records added to it."""

    records: int = 0
    captions: int = 0  # records that have one
    intrinsics: int = 0  # records that have them
    pixels: int = 0
    valid: int = 0  # pixels
    min_depth: float | None = None
    max_depth: float | None = None
    sizes: Counter[str] = field(default_factory=Counter)  # records by "columns x rows"
    depth_bins: Counter[int] = field(default_factory=Counter)  # valid pixels by bin of log2 depth
    # Records by percent of valid pixels; -1: none at all.
    valid_percents: Counter[int] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Counts one record."""
        height, width = record.depth.shape
        depth = record.depth[record.valid]
        self.records += 1
        self.captions += bool(record.caption)
        self.intrinsics += bool(np.isfinite(record.intrinsics).all())
        self.pixels += record.depth.size
        self.valid += depth.size
        self.sizes[f"{width} x {height}"] += 1
        self.valid_percents[100 * depth.size // record.depth.size if depth.size else -1] += 1
        if depth.size:
            self._extend(float(depth.min()), float(depth.max()))
            bins = np.floor(np.log2(depth.astype(np.float64)) * _BINS).astype(int)
            bins, counts = np.unique(bins, return_counts=True)
            self.depth_bins.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: DatasetStats) -> None:
        """Adds the records of other statistics."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _HISTOGRAMS:
            getattr(self, name).update(getattr(other, name))
        if other.min_depth is not None and other.max_depth is not None:
            self._extend(other.min_depth, other.max_depth)

    def to_json(self) -> JsonObject:
        """Returns all counts, for `from_json`."""
        histograms = {
            name: {str(key): n for key, n in sorted(getattr(self, name).items())}
            for name in _HISTOGRAMS
        }
        names = (*_COUNTS, "min_depth", "max_depth")
        return {**{name: getattr(self, name) for name in names}, **histograms}

    @staticmethod
    def from_json(content: JsonObject) -> DatasetStats:
        """Inverts `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        low, high = content["min_depth"], content["max_depth"]
        return DatasetStats(
            **{name: parse_count(content[name]) for name in _COUNTS},
            min_depth=None if low is None else parse_number(low),
            max_depth=None if high is None else parse_number(high),
            sizes=Counter({size: parse_count(n) for size, n in content["sizes"].items()}),
            depth_bins=_by_int(content["depth_bins"]),
            valid_percents=_by_int(content["valid_percents"]),
        )

    def summary(self) -> JsonObject:
        """Returns numbers of records, sizes, valid fractions, and depth with its quantiles."""
        by_count = sorted(self.sizes.items(), key=lambda size: (-size[1], size[0]))
        sizes = dict(by_count[:_MAX_SIZES])
        if len(by_count) > _MAX_SIZES:
            sizes["others"] = sum(n for _, n in by_count[_MAX_SIZES:])
        depth = coverage = None
        if self.min_depth is not None and self.max_depth is not None:
            quantiles = {f"{q:g}": self._depth_quantile(q) for q in QUANTILES}
            low, high = self.min_depth, self.max_depth
            depth = {"min": low, "median": quantiles["0.5"], "max": high, "quantiles": quantiles}
            percents = {percent: n for percent, n in self.valid_percents.items() if percent >= 0}
            coverage = {f"{q:g}": _quantile(percents, q) / 100 for q in (0.05, 0.5, 0.95)}
        return {
            "records": self.records,
            "with_caption": self.captions,
            "with_intrinsics": self.intrinsics,
            "without_depth": self.valid_percents[-1],
            "sizes": sizes,
            "valid_fraction": self.valid / self.pixels if self.pixels else 0.0,
            "valid_fraction_of_records": coverage,
            "depth": depth,
        }

    def _extend(self, low: float, high: float) -> None:
        self.min_depth = low if self.min_depth is None else min(low, self.min_depth)
        self.max_depth = high if self.max_depth is None else max(high, self.max_depth)

    def _depth_quantile(self, quantile: float) -> float:
        center = 2.0 ** ((_quantile(self.depth_bins, quantile) + 0.5) / _BINS)
        return float(f"{min(max(center, self.min_depth or 0), self.max_depth or center):.4g}")


def check_summary(stats: JsonObject) -> JsonObject:
    """Returns what `DatasetStats.summary` gave, from JSON.

    Raises KeyError, TypeError, ValueError or AttributeError for anything else.
    """
    counts = [stats[name] for name in ("records", "with_caption", "with_intrinsics")]
    for count in (*counts, stats["without_depth"], *stats["sizes"].values()):
        parse_count(count)
    parse_number(stats["valid_fraction"])
    if (depth := stats["depth"]) is not None:
        fractions, quantiles = stats["valid_fraction_of_records"], depth["quantiles"]
        for name in ("min", "median", "max"):
            parse_number(depth[name])
        for quantile, value in (*fractions.items(), *quantiles.items()):
            float(quantile)
            parse_number(value)
    return stats


def _by_int(counts: Mapping[str, int]) -> Counter[int]:
    return Counter({int(key): parse_count(n) for key, n in counts.items()})


def _quantile(counts: Mapping[int, int], quantile: float) -> int:
    """Returns the lowest key up to which at least that fraction of the counts is."""
    wanted, seen = quantile * sum(counts.values()), 0
    for key in sorted(counts):
        seen += counts[key]
        if seen >= wanted:
            return key
    raise ValueError("a quantile of nothing")
