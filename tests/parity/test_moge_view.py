"""Parity with the view warp of microsoft/MoGe's loader; data/moge_view.npz holds numbers only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.evaluation.views import warp

ARCHIVE = Path(__file__).parent / "data" / "moge_view.npz"


@pytest.mark.parametrize("case", range(4))
def test_view_equals_moge(case):
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        given = {
            k.removeprefix(f"case{case}/"): x
            for k, x in archive.items()
            if k.startswith(f"case{case}/")
        }
    width, height = map(int, given["width_height"])
    view = warp(
        given["image"],
        given["depth"],
        given["valid"],
        given["intrinsics"],
        width_height=(width, height),
    )
    np.testing.assert_allclose(view.intrinsics, given["out_intrinsics"], atol=1e-6)
    np.testing.assert_array_equal(view.valid, given["out_valid"])
    np.testing.assert_allclose(view.depth[view.valid], given["out_depth"][view.valid], rtol=1e-6)
    np.testing.assert_array_equal(view.image, given["out_image"])
