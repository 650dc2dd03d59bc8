"""One file of a job: normals of a photograph and of a depth map, as files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.inference import one_file
from modality_forcing.inference.folder import run_job
from modality_forcing.inference.job import Job
from modality_forcing.inference.photos import Item
from modality_forcing.inference.pipeline import Pipeline

RNG = np.random.default_rng(0)


def test_normals_of_a_photo_and_of_a_depth_map(
    normals_pipeline: Pipeline, tmp_path: Path, monkeypatch
):
    pipeline = normals_pipeline
    photo = RNG.integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "p.png")
    np.save(tmp_path / "d.npy", RNG.uniform(1, 9, (12, 20)).astype(np.float32))
    for mode, file in (("i2n", "p.png"), ("d2n", "d.npy")):
        out = tmp_path / mode
        sampling = pipeline.sampling(mode, steps=1)
        job = Job(mode, out, sampling, "letterbox", formats=("npy", "color", "side"))
        name = file[0]
        done = run_job(pipeline, [Item(tmp_path / file, name)], job)
        made = {path.name: path.read_bytes() for path in done.outputs}
        assert made.keys() == {f"{name}_normals.npy", f"{name}_normals.png", f"{name}_side.png"}
        normals = np.load(io.BytesIO(made[f"{name}_normals.npy"]))
        assert normals.dtype == np.float32 and normals.shape == (12, 20, 3)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
        colors = np.asarray(Image.open(out / f"{name}_normals.png"))
        expected = np.rint((normals * (1, -1, -1) + 1) / 2 * 255)
        assert np.abs(colors - expected).max() <= 1
        with Image.open(out / f"{name}_side.png") as side:
            assert side.size == (40, 12)
        (line,) = (out / "manifest.jsonl").read_text().splitlines()
        assert json.loads(line)["outputs"] == list(made) and json.loads(line)["size"] == [20, 12]
    photos = Job("i2n", tmp_path / "again", pipeline.sampling("i2n", steps=1), "crop")
    monkeypatch.setattr(one_file, "LARGE", 50)
    run_job(pipeline, [Item(tmp_path / "p.png", "p")], photos)
    normals = np.load(tmp_path / "again/p_normals.npy")
    assert np.isnan(normals[:, :4]).all() and np.isfinite(normals[:, 4:16]).all()
    with pytest.raises(UserError, match="exr is of depth alone; choose from npy, png and side"):
        run_job(pipeline, [Item(tmp_path / "p.png", "p")], replace(photos, formats=("exr",)))
