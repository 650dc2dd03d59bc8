"""What is in many records, counted as they go by: sizes, captions, and the distribution of depth and of its coverage.

Tallies of parts add up to the tally of the whole, in whatever order. Extremes are exact. Quantiles come from a histogram
of log2 depth with 64 bins an octave, so each is right to 0.6% of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modality_forcing.data.records import Record

_BINS = 64  # an octave
_SHARES = 100  # to the whole, of the part of a record's pixels that is valid
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_SIZES_TOLD = 8


@dataclass
class Tally:
    """Counts of the records added to it."""

    records: int = 0
    captions: int = 0  # records that have one
    intrinsics: int = 0  # records that have them
    pixels: int = 0
    valid: int = 0  # pixels
    least: float | None = None  # depth
    most: float | None = None
    sizes: Counter[str] = field(default_factory=Counter)  # records by "columns x rows"
    depths: Counter[int] = field(default_factory=Counter)  # valid pixels by bin of log2 depth
    shares: Counter[int] = field(
        default_factory=Counter
    )  # records by hundredths of valid pixels; -1: none at all

    def add(self, record: Record) -> None:
        """Counts one record."""
        height, width = record.depth.shape
        known = record.depth[record.valid]
        self.records += 1
        self.captions += bool(record.caption)
        self.intrinsics += bool(np.isfinite(record.intrinsics).all())
        self.pixels += record.depth.size
        self.valid += known.size
        self.sizes[f"{width} x {height}"] += 1
        self.shares[_SHARES * known.size // record.depth.size if known.size else -1] += 1
        if known.size:
            self._extend(float(known.min()), float(known.max()))
            bins, counts = np.unique(
                np.floor(np.log2(known.astype(np.float64)) * _BINS).astype(int), return_counts=True
            )
            self.depths.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: Tally) -> None:
        """Counts all records of another tally."""
        for name in ("records", "captions", "intrinsics", "pixels", "valid"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("sizes", "depths", "shares"):
            getattr(self, name).update(getattr(other, name))
        if other.least is not None and other.most is not None:
            self._extend(other.least, other.most)

    def to_json(self) -> dict[str, Any]:
        """Returns everything, to go on from."""
        counts = {
            name: {str(key): n for key, n in sorted(getattr(self, name).items())}
            for name in ("sizes", "depths", "shares")
        }
        names = ("records", "captions", "intrinsics", "pixels", "valid", "least", "most")
        return {**{name: getattr(self, name) for name in names}, **counts}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Tally:
        """Returns the tally that `to_json` gave; raises KeyError, TypeError or ValueError for anything else."""
        plain = {
            name: int(content[name])
            for name in ("records", "captions", "intrinsics", "pixels", "valid")
        }
        least, most = (
            None if content[name] is None else float(content[name]) for name in ("least", "most")
        )
        depths, shares = (
            Counter({int(key): int(n) for key, n in content[name].items()})
            for name in ("depths", "shares")
        )
        return Tally(
            **plain,
            least=least,
            most=most,
            sizes=Counter(content["sizes"]),
            depths=depths,
            shares=shares,
        )

    def summary(self) -> dict[str, Any]:
        """Returns what is worth reading: numbers of records, sizes, depth and its quantiles, valid fractions."""
        most_common = sorted(self.sizes.items(), key=lambda size: (-size[1], size[0]))
        sizes = dict(most_common[:_SIZES_TOLD])
        if len(most_common) > _SIZES_TOLD:
            sizes["others"] = sum(n for _, n in most_common[_SIZES_TOLD:])
        depth = None
        if self.least is not None and self.most is not None:
            quantiles = {f"{q:g}": self._depth_at(q) for q in QUANTILES}
            depth = {
                "least": self.least,
                "median": quantiles["0.5"],
                "most": self.most,
                "quantiles": quantiles,
            }
        with_depth = {share: n for share, n in self.shares.items() if share >= 0}
        return {
            "records": self.records,
            "with_caption": self.captions,
            "with_intrinsics": self.intrinsics,
            "without_depth": self.shares[-1],
            "sizes": sizes,
            "valid_fraction": self.valid / self.pixels if self.pixels else 0.0,
            "valid_fraction_of_records": {
                f"{q:g}": _quantile(with_depth, q) / _SHARES for q in (0.05, 0.5, 0.95)
            }
            if with_depth
            else None,
            "depth": depth,
        }

    def _extend(self, least: float, most: float) -> None:
        self.least = least if self.least is None else min(least, self.least)
        self.most = most if self.most is None else max(most, self.most)

    def _depth_at(self, quantile: float) -> float:
        middle = 2.0 ** ((_quantile(self.depths, quantile) + 0.5) / _BINS)
        return float(f"{min(max(middle, self.least or 0), self.most or middle):.4g}")


def _quantile(counts: Mapping[int, int], quantile: float) -> int:
    """The lowest bin up to which at least that part of the counts lies."""
    wanted, seen = quantile * sum(counts.values()), 0
    for key in sorted(counts):
        seen += counts[key]
        if seen >= wanted:
            return key
    raise ValueError("a quantile of nothing")
