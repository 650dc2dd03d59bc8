"""Trains on a folder of real images and depth of several sensors, then samples from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.train.metrics import read_metrics
from tests.runs import CONFIGS, SMALL

# In millimeters: a Kinect with holes, a tracked frame, a phone with depth smaller than its image.
SAMPLES = {
    "kinect": (
        "metric3d_nyu_demo/rgb/rgb_00000.jpg",
        "metric3d_nyu_demo/depth/sync_depth_00000.png",
    ),
    "frame": (
        "tsdf_fusion_rgbd/rgbd-frames/frame-000150.color.png",
        "tsdf_fusion_rgbd/rgbd-frames/frame-000150.depth.png",
    ),
    "phone": ("promptda_arkit/image.jpg", "promptda_arkit/arkit_depth.png"),
}


@pytest.fixture(scope="module")
def trained(real_data: Path, tmp_path_factory) -> Path:
    from modality_forcing import cli

    root = tmp_path_factory.mktemp("real")
    for folder, number in (("images", 0), ("depth", 1)):
        (root / "photos" / folder).mkdir(parents=True)
        for name, files in SAMPLES.items():
            link = root / "photos" / folder / f"{name}{Path(files[number]).suffix}"
            link.symlink_to(real_data / files[number])
    settings = {"root": root / "photos", "depth_scale": 0.001, "resolution": 32, "workers": 0}
    overrides = [f"--config.data.{key}={value}" for key, value in settings.items()]
    overrides += [
        *SMALL,
        "--config.train.batch=3",
        "--config.train.steps=12",
        "--config.train.log_every=1",
    ]
    config = f"--config={CONFIGS / 'folder.py'}:distill=False"
    assert cli.main(["train", config, *overrides, "--workdir", str(root / "run")]) == 0
    return root / "run"


def test_real_depth_trains(trained: Path):
    rows = [row for row in read_metrics(trained) if "loss" in row]
    assert len(rows) == 12
    assert all(np.isfinite(row["loss_depth"]) and np.isfinite(row["loss_image"]) for row in rows)
    losses = [row["loss_depth"] for row in rows]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_depth_of_a_real_photo(trained: Path, real_data: Path, tmp_path: Path, mforce):
    photo, out = real_data / SAMPLES["kinect"][0], tmp_path / "out"
    options = ("--checkpoint", trained, "--out", out, "--steps", 4)
    done = mforce("sample", "--mode", "i2d", "--image", photo, *options)
    assert (done.code, done.err) == (0, ""), done.err
    depth = np.load(out / f"{photo.stem}_depth.npy", allow_pickle=False)
    with Image.open(photo) as original:
        assert depth.shape == original.size[::-1] and np.isfinite(depth).all()
    assert (depth > 0).all() and depth.std() > 0
    with Image.open(out / f"{photo.stem}_depth.png") as opened:
        codes, scale = np.asarray(opened).astype(float), float(opened.info["scale"])
    np.testing.assert_allclose(codes * scale, depth, atol=scale)


def test_real_depth_map_as_condition(trained: Path, real_data: Path, tmp_path: Path, mforce):
    path, out = real_data / SAMPLES["phone"][1], tmp_path / "out"
    options = ("--checkpoint", trained, "--out", out, "--steps", 4)
    done = mforce("sample", "--mode", "d2i", "--depth", path, "--depth-scale", 0.001, *options)
    assert (done.code, done.err) == (0, ""), done.err
    with Image.open(out / f"{path.stem}_image.png") as image, Image.open(path) as depth:
        assert image.size == depth.size and np.asarray(image).std() > 0
