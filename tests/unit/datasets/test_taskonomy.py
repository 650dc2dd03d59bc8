"""Taskonomy: 1/512 meters, two invalid values, a camera by its field of view."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.taskonomy import DATASET
from tests import layouts

PLACES = ["{task}/{building}", "{task}/taskonomy/{building}", "{building}/{task}"]
SPLIT = "splits_taskonomy/train_val_test_fullplus.csv"


def view(root: Path, building: str = "allensville", place: str = PLACES[0]) -> np.ndarray:
    """Writes one view; returns its counts."""

    def path(task: str, ending: str) -> Path:
        return (
            root
            / place.format(task=task, building=building)
            / f"point_3_view_1_domain_{task}.{ending}"
        )

    layouts.image(path("rgb", "png"), 8, 8)
    counts = layouts.RNG.integers(1, 65535, (8, 8)).astype(np.uint16)
    counts[0, :3] = 0, 65535, 512
    layouts.stored(path("depth_zbuffer", "png"), counts)
    layouts.counts(path("depth_euclidean", "png"), 8, 8)
    layouts.text(
        path("point_info", "json"), json.dumps({"field_of_view_rads": math.pi / 2, "resolution": 8})
    )
    layouts.junk(path("rgb", "png").with_name("._point_3_view_1_domain_rgb.png"))
    return counts


def split(root: Path, *rows: str, name: str = SPLIT) -> None:
    layouts.text(root / name, "id,train,val,test\n" + "".join(f"{row}\n" for row in rows))


@pytest.mark.parametrize("place", PLACES)
def test_depth_and_camera(tmp_path: Path, place: str):
    counts = view(tmp_path, place=place)
    split(tmp_path, "allensville,1,0,0", "beechwood,1,0,0")
    (record,) = layouts.records(DATASET, tmp_path)
    assert (
        record.id == place.format(task="rgb", building="allensville") + "/point_3_view_1_domain_rgb"
    )
    np.testing.assert_array_equal(
        record.depth, np.where(counts == 65535, 0, counts / 512).astype(np.float32)
    )
    assert record.depth[0, 2] == 1 and record.valid.sum() == 62
    np.testing.assert_allclose(record.intrinsics, [[4, 0, 3.5], [0, 4, 3.5], [0, 0, 1]], rtol=1e-6)


def test_splits_are_by_building(tmp_path: Path):
    for building in ("a", "b", "c"):
        view(tmp_path, building)
    split(tmp_path, "a,1,0,0", "b,0,1,0", "c,0,0,1", name="train_val_test_tiny.csv")
    for name, building in (("train", "a"), ("val", "b"), ("test", "c")):
        assert [record.id.split("/")[1] for record in layouts.records(DATASET, tmp_path, name)] == [
            building
        ]
    split(tmp_path, "c,1,0,0")  # the largest that is there
    assert [record.id.split("/")[1] for record in layouts.records(DATASET, tmp_path)] == ["c"]


def test_view_without_a_camera_is_reported(tmp_path: Path):
    view(tmp_path)
    split(tmp_path, "allensville,1,0,0")
    path = tmp_path / "point_info/allensville/point_3_view_1_domain_point_info.json"
    for content, message in (
        ("{", "is not valid JSON"),
        ("{}", "states no field"),
        ('{"field_of_view_rads": 4}', "a field of view of 4"),
    ):
        layouts.text(path, content)
        assert message in layouts.refused(DATASET, tmp_path)
    path.unlink()
    assert np.isnan(layouts.records(DATASET, tmp_path)[0].intrinsics).all()


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for name in DATASET.splits:
        assert "no such folder" in layouts.refused(DATASET, tmp_path / "absent", name)
        assert f"{SPLIT}: no such file; put it there" in layouts.refused(
            DATASET, tmp_path / "empty", name
        )
