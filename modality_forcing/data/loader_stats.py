"""What a loader did: waits, and by source the shares, valid depth and seconds of its examples."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np


class LoaderStats:
    """Sums over batches, by source: examples, valid fraction of depth, seconds to make."""

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._sums = np.zeros((3, len(names)))  # examples, valid fractions, seconds
        self._waits: list[float] = []
        self._lock = threading.Lock()  # batches may arrive in one thread and be logged in another

    def add(self, rows: np.ndarray, wait: float) -> None:
        """Adds a batch: rows f32 [b 3] (source, valid fraction, seconds to make); wait: seconds."""
        columns = np.ones(len(rows)), rows[:, 1], rows[:, 2]
        number, count = rows[:, 0].astype(np.int64), len(self._names)
        sums = [np.bincount(number, column, minlength=count) for column in columns]
        with self._lock:
            self._sums += np.stack(sums)
            self._waits.append(wait)

    def pop(self) -> dict[str, float]:
        """Returns means since the last call and resets them.

        `wait`: seconds until a batch arrived. By source, as KEY/NAME if there are several: `share`
        of the examples, `valid` fraction of pixels, `seconds` to make one example. Sources without
        examples are left out.
        """
        with self._lock:
            sums, waits = self._sums, self._waits
            self._sums, self._waits = np.zeros_like(sums), []
        stats = {"wait": float(np.mean(waits))} if waits else {}
        total = sums[0].sum()
        for name, (count, valid, seconds) in zip(self._names, sums.T, strict=True):
            if count:
                suffix = f"/{name}" if name else ""
                stats[f"share{suffix}"] = float(count / total)
                stats[f"valid{suffix}"] = float(valid / count)
                stats[f"seconds{suffix}"] = float(seconds / count)
        return stats
