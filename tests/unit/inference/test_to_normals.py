"""Normals from Python, at the size of what they are made of."""

from __future__ import annotations

import numpy as np

from modality_forcing.inference.pipeline import Pipeline

RNG = np.random.default_rng(0)


def test_normals_of_images_and_of_depth(normals_pipeline: Pipeline):
    pipeline = normals_pipeline
    photos = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in ((24, 40), (40, 10))]
    results = pipeline.image_to_normals(photos, steps=1)
    for photo, result in zip(photos, results, strict=True):
        assert result.image is photo and result.depth is None and result.normals is not None
        assert result.normals.shape == photo.shape and result.normals.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(result.normals, axis=-1), 1, atol=1e-5)
    (cropped,) = pipeline.image_to_normals([photos[0]], steps=1, fit="crop")
    assert cropped.normals is not None
    lengths = np.linalg.norm(cropped.normals, axis=-1)
    np.testing.assert_allclose(lengths[:, 8:32], 1, atol=1e-5)
    assert not lengths[:, :8].any() and not lengths[:, 32:].any()  # what the network did not see
    depth = RNG.uniform(1, 9, (24, 40)).astype(np.float32)
    depth[:5] = np.nan
    one, far = pipeline.depth_to_normals([depth, 1000 * depth], steps=1)
    assert one.normals is not None and far.normals is not None
    np.testing.assert_array_equal(one.depth == 0, np.isnan(depth))
    np.testing.assert_allclose(one.normals, far.normals, atol=1e-5)  # the unit has no effect
    assert one.image is None and one.normals is not None and one.normals.shape == (24, 40, 3)
    made = pipeline.generate(["a red ball"] * 2, steps=1)
    assert made[0].normals is not None and made[0].normals.shape == (16, 16, 3)
