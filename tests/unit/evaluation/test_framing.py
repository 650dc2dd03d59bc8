"""Views of a frame: what the model sees and what is scored are the same part of the world."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, Frame
from modality_forcing.evaluation.framing import VIEWS, placed, scored, view_name, view_size
from modality_forcing.evaluation.views import warp

NYU = BENCHMARKS["nyuv2"]
CAMERA = np.array([[0.9, 0, 0.52], [0, 1.2, 0.47], [0, 0, 1]], np.float32)


def frame(height: int = 48, width: int = 64, camera: np.ndarray | None = CAMERA) -> Frame:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    depth = rng.uniform(1, 9, (height, width)).astype("f4")
    valid = rng.random((height, width)) < 0.8
    return Frame("a", ramp.astype("u1"), np.where(valid, depth, 0).astype("f4"), valid, camera)


def test_square_is_the_view_of_moges_loader_at_the_models_size():
    one = frame()
    seen = scored(one, NYU, "square", 32)
    expected = warp(one.image, one.depth, one.valid, CAMERA, (32, 32))
    np.testing.assert_array_equal(seen.image, expected.image)
    np.testing.assert_array_equal(seen.picture, expected.image)
    np.testing.assert_array_equal(seen.truth, expected.depth)
    np.testing.assert_array_equal(seen.valid, expected.valid)
    assert seen.camera and seen.name == "a"


def test_moges_view_has_its_published_size_and_the_model_sees_all_of_it():
    seen = scored(frame(), NYU, "moge", 32)
    assert seen.picture.shape == (480, 640, 3) and seen.truth.shape == seen.valid.shape == (
        480,
        640,
    )
    assert seen.image.shape == (32, 32, 3)
    # The ramp runs from edge to edge in both.
    np.testing.assert_allclose(
        seen.image.mean(axis=(0, 2))[[0, -1]], seen.picture.mean(axis=(0, 2))[[10, -11]], atol=4
    )


def test_a_frame_as_stored_is_scored_as_stored():
    one = frame()
    seen = scored(one, NYU, "frame", 16)
    np.testing.assert_array_equal(seen.truth, one.depth)
    np.testing.assert_array_equal(seen.picture, one.image)
    assert seen.image.shape == (16, 16, 3)


def test_far_depth_is_left_out_of_views_as_the_loader_does_and_kept_in_frames():
    one = frame()
    one.depth[0, 0], one.valid[0, 0] = 1e6, True
    one.depth[24, 32], one.valid[24, 32] = 1e6, True
    assert scored(one, NYU, "frame", 16).valid.sum() == one.valid.sum()
    seen = scored(one, NYU, "moge", 16)
    assert seen.truth[seen.valid].max() < 10


def test_without_a_camera_a_view_is_a_centred_crop():
    one = frame(camera=None)
    seen = scored(one, NYU, "square", 48)
    assert not seen.camera
    crop = one.depth[:, 8:56]
    np.testing.assert_array_equal(seen.valid, one.valid[:, 8:56])
    np.testing.assert_allclose(seen.truth, crop, rtol=1e-6)


def test_a_prediction_is_laid_out_smoothly():
    ramp = np.tile(np.arange(8, dtype="f4"), (8, 1))
    wide = placed(ramp, (16, 32))
    assert wide.shape == (16, 32) and wide.dtype == np.float32
    np.testing.assert_allclose(
        wide[:, 4:-4], np.tile((np.arange(4, 28) + 0.5) / 4 - 0.5, (16, 1)), atol=1e-5
    )
    assert placed(ramp, (8, 8)) is ramp


def test_names_and_sizes():
    assert [view_size(NYU, name, 32) for name in VIEWS] == [(32, 32), (640, 480), None]
    assert view_name("moge") == "moge"
    with pytest.raises(UserError, match="choose one of square, moge, frame"):
        view_name("crop")
