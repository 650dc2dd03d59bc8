"""The record's promises: a good record passes unchanged, and each broken promise is named."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modality_forcing.data.records import Record, check


def a_record(h: int = 4, w: int = 6) -> Record:
    return Record(
        image=np.zeros((h, w, 3), np.uint8),
        depth=np.ones((h, w), np.float32),
        valid=np.ones((h, w), np.bool_),
        intrinsics=np.full((3, 3), np.nan, np.float32),
        unit="metric",
        caption="a red ball",
        source="test",
        id="test/0",
    )


def test_valid_record_is_returned_unchanged():
    record = a_record()
    assert check(record) is record


BROKEN = {
    "image dtype": ({"image": np.zeros((4, 6, 3), np.float32)}, "image is float32"),
    "image without channels": ({"image": np.zeros((4, 6), np.uint8)}, r"image is uint8 \(4, 6\)"),
    "image of another size": (
        {"image": np.zeros((6, 4, 3), np.uint8)},
        r"expected uint8 \(4, 6, 3\)",
    ),
    "depth dtype": ({"depth": np.ones((4, 6), np.float64)}, "depth is float64"),
    "depth rank": (
        {
            "image": np.zeros((4, 6, 1, 3), np.uint8),
            "depth": np.ones((4, 6, 1), np.float32),
            "valid": np.ones((4, 6, 1), np.bool_),
        },
        r"depth is float32 \(4, 6, 1\)",
    ),
    "half a character": ({"caption": "party \ud83c"}, "caption holds half a character"),
    "another half": ({"other_captions": ("\udf89",)}, "another caption holds half a character"),
    "source that is not UTF-8": ({"source": "caf\udce9"}, "source holds half a character"),
    "normals of another type": ({"normals": np.zeros((4, 6, 3))}, "normals are float64"),
    "normals of another size": (
        {"normals": np.zeros((4, 6), np.float32)},
        r"normals are float32 \(4, 6\), expected float32 \(4, 6, 3\)",
    ),
    "normals of another length": (
        {"normals": np.full((4, 6, 3), 0.5, np.float32)},
        "normals are neither of length 1 nor unknown",
    ),
    "mask dtype": ({"valid": np.ones((4, 6), np.uint8)}, "valid is uint8"),
    "mask size": ({"valid": np.ones((4, 5), np.bool_)}, r"valid is bool \(4, 5\)"),
    "intrinsics dtype": ({"intrinsics": np.eye(3)}, "intrinsics are float64"),
    "intrinsics infinite": (
        {"intrinsics": np.full((3, 3), np.inf, np.float32)},
        r"intrinsics are neither finite nor unknown \(NaN\)",
    ),
    "intrinsics shape": ({"intrinsics": np.ones(4, np.float32)}, r"intrinsics are float32 \(4,\)"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_invalid_record_is_reported_with_its_id(change: dict, message: str):
    with pytest.raises(ValueError, match=f"record test/0: .*{message}"):
        check(replace(a_record(), **change))


@given(
    valid=npst.arrays(np.bool_, (4, 6)),
    bad=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0]),
    at=st.tuples(st.integers(0, 3), st.integers(0, 5)),
)
def test_depth_must_be_good_where_it_is_valid_and_only_there(
    valid: np.ndarray, bad: float, at: tuple[int, int]
):
    depth = np.ones((4, 6), np.float32)
    depth[at] = bad
    record = replace(a_record(), depth=depth, valid=valid)
    if valid[at]:
        with pytest.raises(ValueError, match="finite and positive"):
            check(record)
    else:
        assert check(record) is record


def test_record_is_read_only():
    with pytest.raises(FrozenInstanceError):
        a_record().caption = "a blue ball"  # pyright: ignore[reportAttributeAccessIssue]
