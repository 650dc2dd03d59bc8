"""The pipeline on a checkpoint of random weights: every task, lists and single inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import modality_forcing
from modality_forcing.errors import UserError
from modality_forcing.inference.pipeline import Pipeline

RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in ((24, 40), (50, 20), (1, 1))]


@pytest.fixture(scope="module")
def pipeline(forcing_run: Path) -> Pipeline:
    return Pipeline.from_pretrained(forcing_run, batch=2)


def test_the_package_imports_it_lazily():
    code = "import sys, modality_forcing; assert not {'jax', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    assert modality_forcing.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="has no attribute 'Pipelines'"):
        _ = modality_forcing.Pipelines  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch", "tiles"])
def test_a_list_gives_what_its_elements_give(pipeline: Pipeline, fit: str):
    results = pipeline.image_to_depth(PHOTOS, fit=fit, steps=1)
    for photo, result in zip(PHOTOS, results, strict=True):
        assert result.depth is not None and result.valid is not None and result.image is photo
        assert result.depth.shape == result.valid.shape == photo.shape[:2]
        (listed,) = pipeline.image_to_depth([photo], fit=fit, steps=1)
        np.testing.assert_array_equal(listed.depth, result.depth)
        alone = pipeline.image_to_depth(photo, fit=fit, steps=1)  # a program of one example
        np.testing.assert_allclose(alone.depth, result.depth, rtol=1e-3)


def test_sizes_and_lengths_compile_nothing_again(pipeline: Pipeline):
    pipeline.image_to_depth(PHOTOS[:2], ensemble=2, steps=1)
    compiled = pipeline.generator._sample._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    pipeline.image_to_depth([PHOTOS[1]], ensemble=2, steps=1)
    pipeline.image_to_depth(PHOTOS, ensemble=2, steps=1)
    assert pipeline.generator._sample._cache_size() == compiled  # pyright: ignore[reportFunctionMemberAccess]


def test_ensembles_have_their_uncertainty(pipeline: Pipeline):
    one, two = (pipeline.image_to_depth(PHOTOS[:1], ensemble=n, steps=1)[0] for n in (1, 3))
    assert one.uncertainty is None and two.uncertainty is not None
    assert two.uncertainty.shape == (24, 40) and two.uncertainty.max() > 0
    other = pipeline.image_to_depth(PHOTOS[:1], steps=1, seed=1)[0]
    assert not np.array_equal(other.depth, one.depth)


def test_depth_to_image(pipeline: Pipeline):
    depth = RNG.uniform(1, 9, (24, 40)).astype(np.float32)
    depth[:5] = np.nan
    exact, far = pipeline.depth_to_image([depth, 1000 * depth], "a red ball", steps=2)
    assert exact.image is not None and exact.image.dtype == np.uint8
    assert exact.image.shape == (24, 40, 3) and exact.valid is not None
    np.testing.assert_array_equal(exact.image, far.image)  # the unit has no effect
    np.testing.assert_array_equal(exact.valid, np.isfinite(depth))
    images = [
        pipeline.depth_to_image([depth], strength=s, steps=2)[0].image for s in (1, 0.9, 0.1, 0)
    ]
    assert len({x.tobytes() for x in images if x is not None}) == 4


def test_inputs_guide_by_their_weight(pipeline: Pipeline):
    depth = RNG.uniform(1, 9, (16, 16)).astype(np.float32)
    near, far, loose = (
        pipeline.depth_to_image([depth], steps=2, strength=s, condition_guidance=w)[0].image
        for s, w in ((1, 1), (1, 3), (0.9, 3))
    )
    plain = pipeline.depth_to_image([depth], steps=2)[0].image
    np.testing.assert_array_equal(near, plain)
    assert not np.array_equal(far, plain) and not np.array_equal(far, loose)
    one, three = (
        pipeline.image_to_depth(PHOTOS[:1], steps=1, condition_guidance=w)[0].depth for w in (1, 3)
    )
    assert not np.allclose(one, three, rtol=1e-3)
    with pytest.raises(UserError, match=r"sample\.condition_guidance\.depth is -1"):
        pipeline.depth_to_image([depth], condition_guidance=-1)


def test_generate(pipeline: Pipeline, t2i_run: Path):
    results = pipeline.generate(["a red ball"] * 3, steps=2, refine=True, log2_alpha=1)
    assert isinstance(results, list)
    assert len({r.image.tobytes() for r in results if r.image is not None}) == 3
    assert all(r.depth is not None and r.depth.shape == (16, 16) for r in results)
    images_only = Pipeline.from_pretrained(t2i_run)
    result = images_only.generate("a red ball", steps=1)
    assert result.image.shape == (16, 16, 3) and result.depth is None
    with pytest.raises(UserError, match="use a checkpoint of the forcing phase"):
        images_only.image_to_depth(PHOTOS[0])


def test_wrong_arguments_are_one_line(pipeline, forcing_run: Path, unchecked):
    for call, message in (
        (lambda: Pipeline.from_pretrained(forcing_run, fit="zoom"), "unknown fit 'zoom'"),
        (lambda: Pipeline(pipeline.generator, batch=0), "batch is 0"),
        (lambda: pipeline.image_to_depth(PHOTOS[0], ensemble=0), "ensemble is 0"),
        (lambda: pipeline.depth_to_image(np.ones((2, 2)), strength=2), "strength is 2"),
        (lambda: pipeline.depth_to_image(np.ones((2, 2)), strength="all"), "strength is 'all'"),
        (lambda: pipeline.depth_to_image(np.ones((2, 2)), guidance=[1]), r"guidance is \[1\]"),
        (lambda: pipeline.generate("", log2_alpha="1"), "log2_alpha is '1'; .* from -64 to 64"),
        (lambda: pipeline.generate("", steps=10**6), "steps is 1000000; it must be from 1 to 10"),
        (lambda: pipeline.image_to_depth(PHOTOS[0], ensemble=65), "ensemble is 65; .* at most 64"),
        (lambda: Pipeline.from_pretrained(forcing_run, size=64), "size is 64; give rows and"),
        (lambda: pipeline.image_to_depth(PHOTOS[0], seed=-1), "seed is -1; .* at least 0"),
        (lambda: pipeline.generate("", seed=2**63), "seed is 9.*below 2\\^63"),
        (lambda: pipeline.image_to_depth(PHOTOS[0], ensemble=2.5), "ensemble is 2.5"),
        (lambda: pipeline.image_to_depth(PHOTOS[0], steps=1.5), "steps is 1.5"),
        (lambda: pipeline.image_to_depth([[PHOTOS[0]]]), "list is no image; give a path"),
        (lambda: pipeline.image_to_depth(b"GIF89a"), "bytes is no input; open it with PIL"),
        (lambda: pipeline.depth_to_image(np.ones((2, 2)), 3), "a caption is text, not int"),
        (lambda: pipeline.generate(None), "a caption is text, not NoneType; give a str"),
        (
            lambda: Pipeline.from_pretrained(3),  # pyright: ignore[reportArgumentType]
            "a checkpoint is a path or an address, not int",
        ),
    ):
        with pytest.raises(UserError, match=message):
            call()
