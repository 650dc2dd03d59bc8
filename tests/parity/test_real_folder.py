"""Real pictures and depth of several sensors, in one folder, through configs/folder.py; and depth of a real photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.train.metrics import read_metrics
from tests.runs import CONFIGS, SMALL

# In millimetres all three: a Kinect with holes, a tracked frame, and a phone whose depth is smaller than its picture.
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
    for part, place in (("images", 0), ("depth", 1)):
        (root / "photos" / part).mkdir(parents=True)
        for name, files in SAMPLES.items():
            (root / "photos" / part / name).with_suffix(Path(files[place]).suffix).symlink_to(
                real_data / files[place]
            )
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
    assert np.mean([row["loss_depth"] for row in rows[-4:]]) < np.mean(
        [row["loss_depth"] for row in rows[:4]]
    )


def test_depth_of_a_real_photo(trained: Path, real_data: Path, tmp_path: Path, mforce):
    photo = real_data / SAMPLES["kinect"][0]
    done = mforce(
        "sample",
        "--checkpoint",
        trained,
        "--mode",
        "i2d",
        "--image",
        photo,
        "--out",
        tmp_path / "out",
        "--steps",
        4,
    )
    assert (done.code, done.err) == (0, ""), done.err
    depth = np.load(tmp_path / "out/i2d_000_depth.npy", allow_pickle=False)
    assert (
        depth.shape == (32, 32)
        and np.isfinite(depth).all()
        and (depth > 0).all()
        and depth.std() > 0
    )
    with Image.open(tmp_path / "out/i2d_000_depth.png") as opened:
        codes, scale = np.asarray(opened).astype(float), float(opened.info["scale"])
    np.testing.assert_allclose(codes * scale, depth, atol=scale)
    with Image.open(tmp_path / "out/i2d_000_image.png") as made, Image.open(photo) as given:
        mean = np.asarray(given)[:, 80:560].mean(axis=(0, 1))  # the centre square of 640 x 480
        np.testing.assert_allclose(np.asarray(made).mean(axis=(0, 1)), mean, atol=3)


def test_a_real_depth_map_conditions(trained: Path, real_data: Path, tmp_path: Path, mforce):
    depth = real_data / SAMPLES["phone"][1]
    given = ["--depth", depth, "--depth-scale", 0.001]
    done = mforce(
        "sample",
        "--checkpoint",
        trained,
        "--mode",
        "d2i",
        *given,
        "--out",
        tmp_path / "out",
        "--steps",
        4,
    )
    assert (done.code, done.err) == (0, ""), done.err
    kept = np.load(tmp_path / "out/d2i_000_depth.npy", allow_pickle=False)
    with Image.open(depth) as opened:
        square = np.asarray(opened).astype(float)
    rows, columns = square.shape
    square = square[(rows - min(rows, columns)) // 2 :, (columns - min(rows, columns)) // 2 :][
        : min(rows, columns), : min(rows, columns)
    ]
    # Decoded depth is relative to its own mean: the same shape as what was given.
    small = np.array(
        [
            [cell.mean() for cell in np.array_split(row, 32, axis=1)]
            for row in np.array_split(square, 32, axis=0)
        ]
    )
    assert np.corrcoef(kept.ravel(), small.ravel())[0, 1] > 0.98
