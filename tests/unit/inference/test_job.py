"""What the results of a job depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.data.files import DepthFormat
from modality_forcing.inference.job import Job
from modality_forcing.inference.metric import ScaleSource
from modality_forcing.inference.pipeline import Pipeline


@pytest.fixture
def pipeline(forcing_run: Path) -> Pipeline:
    return Pipeline.from_pretrained(forcing_run)


def test_settings(pipeline: Pipeline, tmp_path: Path):
    job = Job("i2d", tmp_path, pipeline.sampling("i2d", seed=1))
    same = replace(job, out=tmp_path / "other", max_errors=0.5)
    assert same.digest(pipeline) == job.digest(pipeline)
    points = tmp_path / "points.csv"
    points.write_text("x,y,depth\n1,1,1\n")
    others = [
        replace(job, sampling=pipeline.sampling("i2d", seed=2)),
        replace(job, sampling=pipeline.sampling("i2d", seed=1, steps=7)),
        replace(job, fit="tiles"),
        replace(job, captions=("a",)),
        replace(job, formats=("npy",)),
        replace(job, scale=ScaleSource(points, DepthFormat())),
    ]
    assert len({x.digest(pipeline) for x in (job, *others)}) == 1 + len(others)
    config = pipeline.generator.config
    digests = set()
    for text, image in (("umt5:a", "flux2:a"), ("umt5:b", "flux2:a"), ("umt5:a", "flux2:b")):
        latents = replace(config.modalities["image"], latent_channels=128, autoencoder=image)
        pipeline.generator.config = replace(
            config,
            text=replace(config.text, vocab_size=0, encoder=text),
            modalities={**config.modalities, "image": latents},
        )
        digests.add(job.digest(pipeline))
    assert len(digests) == 3, "results depend on the encoders"
    pipeline.generator.config = config
    before = others[-1].digest(pipeline)
    points.write_text("x,y,depth\n1,1,1\n2,2,2\n")
    assert others[-1].digest(pipeline) != before


def test_variants(tmp_path: Path, pipeline: Pipeline):
    job = Job("d2i", tmp_path, pipeline.sampling("d2i"), captions=("a", "b"), repetitions=2)
    assert job.variants == ["a", "a", "b", "b"]
