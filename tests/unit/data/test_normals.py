"""Normals from depth: exact on planes, right on spheres and scenes, unknown where none is sure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.augment import hflip
from modality_forcing.data.normals import from_depth, of_record
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.evaluation.normal_metrics import angular_error
from modality_forcing.synthetic.source import Scenes

K = np.array([[40, 0.5, 15], [0, 44, 17], [0, 0, 1]], np.float32)
EXACT = frozenset({"normals"})


def rays(height: int, width: int, k: np.ndarray = K) -> np.ndarray:
    """Rays [h w 3] of unit depth to the centers of pixels."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k.astype(np.float64)).T


def estimate(depth: np.ndarray, valid: np.ndarray | None = None, **options: float) -> np.ndarray:
    valid = np.ones(depth.shape, bool) if valid is None else valid
    return from_depth(depth.astype(np.float32), valid, K, **options)


@settings(max_examples=25)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-30, 30))
def test_planes_are_exact_in_any_unit(across, down, log_unit):
    normal = np.array([across, down, -1.5]) / np.linalg.norm([across, down, -1.5])
    depth = -3 / (rays(30, 36) @ normal)
    found = estimate(depth * 2.0**log_unit)
    assert (depth > 0).all()
    corners = np.zeros((30, 36), bool)
    corners[np.ix_((0, -1), (0, -1))] = True  # there, 4 pixels of a window of 9 are in the image
    expected = np.where(corners[..., None], 0, normal)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_sphere_is_right_to_a_few_degrees_and_its_outline_unknown():
    center, radius = np.array([0.1, -0.1, 4.0]), 1.2
    r = rays(36, 36)
    b, c = r @ center, center @ center - radius**2
    square = b**2 - np.einsum("hwi,hwi->hw", r, r) * c
    hit = square > 0
    depth = (b - np.sqrt(np.where(hit, square, 0))) / np.einsum("hwi,hwi->hw", r, r)
    true = (r * depth[..., None] - center) / radius
    found = estimate(np.where(hit, depth, 0), hit)
    known = np.linalg.norm(found, axis=-1) > 0
    assert 0.7 < known.sum() / hit.sum() < 1 and not known[~hit].any()
    errors = angular_error(found[None], true[None])[0][known]  # at a focal length of 40 pixels
    assert errors.mean() < 2 and errors.max() < 6


def test_steps_creases_and_sparse_depth_are_unknown():
    step = np.full((12, 20), 2.0)
    step[:, 10:] = 2.2
    known = np.linalg.norm(estimate(step), axis=-1) > 0
    known = known[1:-1, 1:-1]
    assert known[:, :8].all() and known[:, 10:].all() and not known[:, 8:10].any()
    corner = 40 / (20 + np.abs(np.arange(21) - 10))[None].repeat(12, 0)  # two walls that meet
    known = np.linalg.norm(estimate(corner), axis=-1)[1:-1, 1:-1] > 0
    assert known[:, :8].all() and known[:, 11:].all() and not known[:, 9].any()
    some = np.random.default_rng(0).random((12, 20)) < 0.3
    assert not estimate(np.full((12, 20), 2.0), some).any()


def test_holes_are_unknown_and_their_fill_changes_nothing():
    hole = np.ones((12, 20), bool)
    hole[4:6, 7] = False
    depth = np.full((12, 20), 3.0)
    found = estimate(depth, hole)
    expected = np.where(hole[..., None], np.float32((0, 0, -1)), 0)
    np.testing.assert_array_equal(found[1:-1, 1:-1], expected[1:-1, 1:-1])
    depth[~hole] = np.nan
    np.testing.assert_array_equal(estimate(depth, hole), found)


def test_noise_is_unknown_unless_the_window_averages_it():
    rng = np.random.default_rng(0)
    depth = 2 * (1 + 2e-3 * rng.standard_normal((40, 40)))
    small, large = estimate(depth, max_error=1.0), estimate(depth, radius=3, max_error=1.0)
    assert (np.linalg.norm(small, axis=-1) > 0).mean() < 0.6
    assert (np.linalg.norm(large, axis=-1) > 0)[3:-3, 3:-3].mean() > 0.95
    errors = angular_error(large[None], np.broadcast_to(np.float32((0, 0, -1)), (1, 40, 40, 3)))
    assert np.nanmean(errors) < 1.0


def test_unknown_camera_leaves_all_unknown():
    nothing = from_depth(
        np.ones((8, 9), np.float32), np.ones((8, 9), bool), np.full((3, 3), np.nan)
    )
    assert nothing.shape == (8, 9, 3) and nothing.dtype == np.float32 and not nothing.any()


@pytest.mark.parametrize(
    ("stored", "to", "mean", "median"),
    [(64, 64, 0.2, 0.01), (96, 48, 0.6, 0.4), (80, 32, 3.0, 0.2)],
)
def test_scenes_agree_with_their_exact_normals(stored, to, mean, median):
    """Away from edges, to 0.2 degrees; resizing moves the depths that it picks by half a pixel."""
    errors, known = [], []
    for index in range(6):
        record = center_crop_resize(Scenes(resolution=stored, fields=EXACT)[index], to)
        found = of_record(replace(record, normals=None))
        assert record.normals is not None and of_record(record) is record.normals
        errors.append(angular_error(found[None], record.normals[None]))
        known.append(np.any(found, axis=-1).sum() / record.valid.sum())
    assert np.nanmean(errors) < mean and np.mean(known) > 0.6
    assert np.nanmedian(errors) < median


def test_mirrored_record_has_mirrored_normals():
    record = Scenes(resolution=32, fields=EXACT)[1]
    assert record.normals is not None
    mirrored = hflip(record)
    expected = record.normals[:, ::-1] * np.float32((-1, 1, 1))
    np.testing.assert_array_equal(mirrored.normals, expected)
    estimated = of_record(replace(record, normals=None))[:, ::-1] * np.float32((-1, 1, 1))
    np.testing.assert_allclose(of_record(replace(mirrored, normals=None)), estimated, atol=1e-3)
