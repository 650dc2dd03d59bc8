"""Statistics of a loader: means by source since they were last taken."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.data.loader_stats import LoaderStats


def test_means_are_by_source_and_start_again():
    stats = LoaderStats(["a", "b", "unused"])
    assert stats.pop() == {}
    stats.add(np.array([[0, 0.5, 1.0], [1, 1.0, 3.0]], np.float32), wait=0.1)
    stats.add(np.array([[0, 0.1, 2.0], [0, 0.3, 3.0]], np.float32), wait=0.3)
    taken = stats.pop()
    assert taken == pytest.approx(
        {
            "wait": 0.2,
            "share/a": 0.75,
            "valid/a": 0.3,
            "seconds/a": 2.0,
            "share/b": 0.25,
            "valid/b": 1.0,
            "seconds/b": 3.0,
        }
    )
    assert stats.pop() == {}


def test_single_source_has_no_name():
    stats = LoaderStats([""])
    stats.add(np.array([[0, 0.5, 1.0]], np.float32), wait=0.5)
    assert stats.pop() == {"wait": 0.5, "share": 1.0, "valid": 0.5, "seconds": 1.0}
