"""The procedural scenes: a function of the index, correct in depth, and varied."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.records import check
from modality_forcing.errors import UserError
from modality_forcing.evaluation.depth_metrics import (
    constant_scores,
    mean_scores,
    row_mean_prediction,
    score,
)
from modality_forcing.synthetic.captions import find_visible
from modality_forcing.synthetic.objects import COLORS, KINDS
from modality_forcing.synthetic.source import Scenes, sample_scene

DIGEST = """
import hashlib
from modality_forcing.synthetic.source import Scenes
digest = hashlib.sha256()
for index in (0, 3, 999_999):
    record = Scenes(seed=5, resolution=32, split="eval")[index]
    for part in (record.image, record.depth, record.valid, record.intrinsics):
        digest.update(part.tobytes())
    digest.update(f"{record.caption} {record.id}".encode())
print(digest.hexdigest())
"""


def test_scenes_are_equal_in_other_processes():
    root = Path(__file__).parents[3]
    seen = set()
    for salt in ("1", "2"):
        there = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=there, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout.strip())
    digest = hashlib.sha256()
    for index in (999_999, 3, 0):  # the order of asking does not matter
        Scenes(seed=5, resolution=32, split="eval")[index]
    for index in (0, 3, 999_999):
        record = Scenes(seed=5, resolution=32, split="eval")[index]
        for part in (record.image, record.depth, record.valid, record.intrinsics):
            digest.update(part.tobytes())
        digest.update(f"{record.caption} {record.id}".encode())
    assert seen == {digest.hexdigest()}


def test_seed_split_and_index_change_the_scene():
    scenes = [
        sample_scene(0, "train", 0),
        sample_scene(1, "train", 0),
        sample_scene(0, "test", 0),
        sample_scene(0, "train", 1),
    ]
    assert len({repr(one) for one in scenes}) == 4


def test_source_is_a_picklable_sequence():
    source = pickle.loads(pickle.dumps(Scenes(count=3, resolution=16)))  # noqa: S301
    assert len(source) == 3
    assert [record.id for record in source] == ["train-0-0", "train-0-1", "train-0-2"]
    for outside in (3, -1):
        with pytest.raises(IndexError):
            source[outside]
        with pytest.raises(IndexError):
            source.records((0, outside))
    np.testing.assert_array_equal(source[np.int64(1)].depth, source[1].depth)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"resolution": 0}, {"seed": -1}])
def test_invalid_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match="need count"):
        Scenes(**wrong)


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 999_999), resolution=st.sampled_from((16, 32, 50)))
def test_records_are_valid(index: int, resolution: int):
    record = check(Scenes(resolution=resolution)[index])
    assert record.unit == "metric"
    assert record.valid.any()
    assert record.depth[record.valid].min() > 0.05
    assert record.depth[record.valid].max() < 100
    assert (record.depth[~record.valid] == 0).all()
    assert 45 <= 2 * np.degrees(np.arctan(resolution / 2 / record.intrinsics[0, 0])) <= 85


@settings(max_examples=8, deadline=None)
@given(indices=st.lists(st.integers(0, 9_999), min_size=1, max_size=12), normals=st.booleans())
def test_records_do_not_depend_on_how_many_are_rendered_at_once(indices: list[int], normals: bool):
    source = Scenes(resolution=16, fields=frozenset({"normals"} if normals else ()))
    for index, record in zip(indices, source.records(indices), strict=True):
        for one, other in zip(astuple(record), astuple(source[index]), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("index", range(12))
def test_content_does_not_depend_on_resolution(index: int):
    coarse, fine = Scenes(resolution=32)[index], Scenes(resolution=96)[index]
    assert coarse.caption == fine.caption
    # 96 = 3 * 32, so that the middle of each block of nine is the coarse pixel's very ray.
    # All but what rounding does to an outline.
    assert np.mean(coarse.valid == fine.valid[1::3, 1::3]) > 0.995
    assert np.mean(np.isclose(coarse.depth, fine.depth[1::3, 1::3], rtol=1e-4)) > 0.995


def test_scenes_are_varied():
    scenes = [sample_scene(0, "variety", index) for index in range(400)]
    named = [obj for one in scenes for obj in one.objects if obj.nameable]
    kinds, colors = (Counter(obj.kind for obj in named), Counter(obj.color for obj in named))
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 0.05 * len(named)
    assert set(colors) == set(COLORS) and min(colors.values()) > 0.05 * len(named)
    rooms = np.mean([one.setting == "room" for one in scenes])
    assert 0.4 < rooms < 0.7
    heights = [one.camera.position[2] for one in scenes]
    assert min(heights) < 0.6 and max(heights) > 2.8
    pitch = np.degrees(np.arcsin([one.camera.axes[2][2] for one in scenes]))
    assert pitch.min() < -30 and pitch.max() > 8
    assert any(obj.support >= 0 for obj in named)
    seen = [len(find_visible(one).clear) for one in scenes]
    assert np.mean(np.array(seen) >= 2) > 0.75


def test_rows_do_not_predict_depth():
    """The mean depth of rows has over two thirds of the error of the best constant."""
    train, held_out = Scenes(resolution=24), Scenes(resolution=24, split="rows")
    records = train.records(range(300))
    profile = row_mean_prediction(
        np.stack([r.depth for r in records]), np.stack([r.valid for r in records])
    )
    records = held_out.records(range(150))
    depth, valid = np.stack([r.depth for r in records]), np.stack([r.valid for r in records])
    scores = {"constant": constant_scores(depth, valid)}
    scores["rows"] = score(np.broadcast_to(profile, depth.shape), depth, valid)
    constant, rows = (mean_scores(scores[name])["absrel"] for name in ("constant", "rows"))
    assert constant > 0.28
    assert rows > 0.67 * constant


def test_import_loads_no_framework():
    code = "import sys, modality_forcing.synthetic.source; print(*sorted(sys.modules))"
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=there, capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "grain", "tensorflow"} & set(done.stdout.split())


def test_normals_are_rendered_only_when_asked_for():
    plain = Scenes(resolution=24)
    asked = Scenes(resolution=24, fields=frozenset({"normals", "of another modality"}))
    for index in (0, 7):
        one, other = plain[index], check(asked[index])
        assert one.normals is None and other.normals is not None
        np.testing.assert_array_equal(np.any(other.normals, axis=-1), other.valid)
        for name in ("image", "depth", "valid", "intrinsics"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.caption == other.caption
