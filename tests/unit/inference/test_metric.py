"""Metric depth from measurements: the fit, and the files that measurements come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.files import DepthFormat
from modality_forcing.errors import UserError
from modality_forcing.inference.metric import (
    MIN_AFFINE,
    Measured,
    ScaleSource,
    Scaling,
    align,
    describe_all,
    doubts,
    from_map,
    read_points,
)
from modality_forcing.inference.result import Result

RNG = np.random.default_rng(0)
DEPTH = RNG.uniform(0.5, 2, (20, 30)).astype(np.float32)
RESULT = Result(None, DEPTH, np.ones_like(DEPTH, bool), np.full_like(DEPTH, 0.1))


def measure(count: int, scale: float, shift: float) -> Measured:
    at = RNG.permutation(DEPTH.size)[:count]
    rows, columns = np.divmod(at, DEPTH.shape[1])
    return Measured(rows, columns, scale * DEPTH[rows, columns] + shift)


@pytest.mark.parametrize("count", [1, 3, MIN_AFFINE, 100])
def test_metric_depth_of_a_few_points(count: int):
    shift = 0.5 if count >= MIN_AFFINE else 0.0
    metric, scaling = align(RESULT, measure(count, 3.0, shift))
    assert metric.depth is not None and metric.uncertainty is not None
    np.testing.assert_allclose(metric.depth, 3 * DEPTH + shift, rtol=1e-5)
    np.testing.assert_allclose(metric.uncertainty, 0.3, rtol=1e-5)
    assert (scaling.scale, scaling.shift) == (pytest.approx(3), pytest.approx(shift, abs=1e-5))
    assert scaling.count == count and scaling.error < 1e-5


def test_a_third_of_wrong_points_has_no_effect():
    measured = measure(30, 3.0, 0.5)
    measured.depth[::3] *= 40
    np.testing.assert_allclose(align(RESULT, measured)[0].depth, 3 * DEPTH + 0.5, rtol=1e-4)


def test_depth_never_falls_as_the_measured_rises():
    measured = measure(50, 1.0, 0.0)
    falling = Measured(measured.rows, measured.columns, 5 - measured.depth)
    metric, scaling = align(RESULT, falling)
    assert scaling.scale > 0 and scaling.shift == 0 and metric.valid is not None
    negative, scaling = align(RESULT, measure(50, 3.0, -2.0))
    assert negative.depth is not None and negative.valid is not None
    np.testing.assert_array_equal(negative.valid, 3 * DEPTH - 2 > 1e-6)
    assert (negative.depth[~negative.valid] == 0).all()


def test_points_of_a_table(tmp_path: Path):
    path = tmp_path / "points.csv"
    path.write_text("x, y, depth\n0, 0, 1.5\n29.4,19,2\n")
    measured = read_points(path, (20, 30))
    assert [measured.rows.tolist(), measured.columns.tolist()] == [[0, 19], [0, 29]]
    np.testing.assert_allclose(measured.depth, [1.5, 2])
    path.write_text("file,x,y,depth\na.jpg,1,2,3\nb.jpg,4,5,6\n")
    assert read_points(path, (20, 30), "b.jpg").depth.tolist() == [6]
    path.write_text("File,X,Y,Depth\na,1,2,3\na.jpg,4,5,6\nb,7,8,9\n")
    assert read_points(path, (20, 30), "a.jpg").depth.tolist() == [6]
    assert read_points(path, (20, 30), "b.jpg").depth.tolist() == [9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows; give columns x,y,depth"),
        ("x,y\n1,2\n", "lacks a column x, y or depth"),
        ("x,y,depth\n1,2,far\n", "line 2: x, y and depth are not all numbers"),
        ("x,y,depth\n1,2\n", "line 2: x, y and depth are not all numbers"),
        ("x,y,depth\n1,2,3\n30,2,1\n", r"line 3: \(30, 2\) is outside of 30 x 20 pixels"),
        ("x,y,depth\nnan,2,1\n", "outside of 30 x 20"),
        ("x,y,depth\n1,2,-1\n", "line 2: depth -1 is not positive"),
        ("x,X,y,depth\n1,1,2,3\n", "column 'x' is there 2 times"),
        ("x,y,depth,file\n1,2,1,a.jpg\n", "has no row with file b.jpg: the column holds a.jpg; "),
    ],
)
def test_wrong_tables_are_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_points(tmp_path / "points.csv", (20, 30), "b.jpg")


def test_maps_of_another_size(tmp_path: Path):
    depth = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    valid = depth != 5
    measured = from_map(depth, valid, (20, 30), tmp_path)
    np.testing.assert_array_equal(measured.rows, [5, 5, 5, 15, 15])
    np.testing.assert_array_equal(measured.columns, [5, 15, 25, 5, 25])
    np.testing.assert_array_equal(measured.depth, [1, 2, 3, 4, 6])
    with pytest.raises(UserError, match="is 3 x 2 pixels, the photo 30 x 40"):
        from_map(depth, valid, (40, 30), tmp_path)


def test_measurements_are_found_by_name(tmp_path: Path):
    np.save(tmp_path / "photo.npy", DEPTH)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other.csv").write_text("x,y,depth\n1,2,3\n")
    source = ScaleSource(tmp_path, DepthFormat())
    assert len(source.measured(Path("in/photo.jpg"), "photo", (20, 30)).depth) == DEPTH.size
    assert len(source.measured(Path("in/sub/other.jpg"), "sub/other", (20, 30)).depth) == 1
    with pytest.raises(UserError, match=r"in/none.jpg: no measurements of it in .*; add none.csv"):
        source.measured(Path("in/none.jpg"), "none", (20, 30))
    one = ScaleSource(tmp_path / "sub/other.csv", DepthFormat())
    assert one.measured(Path("in/any.jpg"), "any", (20, 30)).depth.tolist() == [3]


def test_one_file_of_measurements_for_several_photos(tmp_path: Path):
    table, depth = tmp_path / "points.csv", tmp_path / "depth.npy"
    table.write_text("x,y,depth\n1,2,3\n")
    np.save(depth, DEPTH)
    for path in (table, depth):
        source = ScaleSource(path, DepthFormat())
        source.check(1)
        message = r"measures one photo, 2 are given; add a column file, or name a folder of maps"
        with pytest.raises(UserError, match=message):
            source.check(2)
    ScaleSource(tmp_path, DepthFormat()).check(2)
    table.write_text("FILE,x,y,depth\na,1,2,3\n")
    ScaleSource(table, DepthFormat()).check(2)


def test_unit_of_a_map(tmp_path: Path):
    path = tmp_path / "photo.npy"
    np.save(path, np.full((20, 30), 2500, np.uint16))
    unknown, known = ScaleSource(path, DepthFormat()), ScaleSource(path, DepthFormat(0.001))
    message = "photo.npy: the unit of its counts is not known; add --depth-scale"
    for source in (unknown, ScaleSource(tmp_path, DepthFormat())):
        with pytest.raises(UserError, match=message):
            source.measured(Path("photo.jpg"), "photo", (20, 30))
    with pytest.raises(UserError, match=message):
        unknown.check(1)
    known.check(1)
    assert known.measured(Path("photo.jpg"), "photo", (20, 30)).depth[0] == np.float32(2.5)
    np.save(path, DEPTH)
    with pytest.raises(UserError, match="holds floats, which --depth-scale does not"):
        known.check(1)


def test_doubtful_measurements():
    good = Scaling(2.0, -0.5, 9, 0.25)
    metric, valid = np.array([[499, 501, 900]], np.float32), np.array([[True, True, False]])
    assert doubts(Result(None, metric, valid), good) == []
    far = Result(None, metric + 1, valid)
    (line,) = doubts(far, good)
    assert line == "the measurements look like millimeters (median 501); give meters"
    assert doubts(far, Scaling(2.0, 0.0, 9, 0.26))[1].startswith(
        "the measurements do not agree with the depth: the mean relative error is 26%"
    )
    assert doubts(Result(None, metric, ~valid & False), good) == []


def test_fits_in_words():
    fits = {"a": Scaling(2.0, -0.5, 9, 0.25), "b": Scaling(4.0, 0.0, 1, 0.05)}
    assert describe_all(fits, 2) == [
        "a: meters = 2 * depth - 0.5, measurements: 9, mean relative error: 25.0%",
        "b: meters = 4 * depth + 0, measurements: 1, mean relative error: 5.0%",
    ]
    whole = "2 photos in meters: scale 2 to 4, median 3; mean relative error 15.0%, at most 25.0% "
    assert describe_all(fits, 1) == [f"{whole}(a)"]


def test_what_cannot_be_aligned():
    with pytest.raises(UserError, match="no measurement is at a pixel of known depth"):
        unknown = Result(None, DEPTH, np.zeros_like(DEPTH, bool))
        align(unknown, measure(3, 1, 0))
    with pytest.raises(UserError, match="this result has no depth"):
        align(Result(), measure(3, 1, 0))
