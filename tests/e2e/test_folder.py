"""A user's folder through both phases of configs/folder.py, then depth of a photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.train.metrics import read_metrics
from tests.runs import CONFIGS, SMALL, contents

pytestmark = pytest.mark.slow
TINY = [
    *SMALL,
    "--config.data.resolution=16",
    "--config.train.steps=3",
    "--config.train.batch=2",
    "--config.train.log_every=1",
]
TINY += ["--config.sample.steps=2", "--config.data.workers=0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three sizes of images; sparse 16-bit depth at half the size for two; captions for two."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "depth").mkdir()
    for name, (height, width) in {
        "a": (24, 40),
        "b": (40, 24),
        "c": (32, 32),
        "no_depth": (16, 16),
    }.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(
            root / f"images/{name}.jpg"
        )
        depth = rng.uniform(1000, 9000, (height // 2, width // 2)) * (
            rng.random((height // 2, width // 2)) < 0.2
        )
        if name != "no_depth":
            Image.fromarray(depth.astype(np.uint16)).save(root / f"depth/{name}.png")
    (root / "captions.txt").write_text("a\ta street\nb\tein Haus\n")
    return root


def test_both_phases_and_depth_of_a_photo(photos: Path, tmp_path: Path, mforce):
    before = contents(photos)
    here = [f"--config.data.root={photos}", "--config.data.depth_scale=0.001", *TINY]
    done = mforce(
        "train", f"--config={CONFIGS / 'folder.py'}:phase=t2i", *here, "--workdir", tmp_path / "t2i"
    )
    assert done.code == 0, done.err
    init = f"--config.train.init_from={tmp_path / 't2i'}"
    done = mforce(
        "train", f"--config={CONFIGS / 'folder.py'}", *here, init, "--workdir", tmp_path / "forcing"
    )
    assert done.code == 0, done.err
    rows = [row for row in read_metrics(tmp_path / "forcing") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(
        np.isfinite(row[name])
        for row in rows
        for name in ("loss_image", "loss_depth", "loss_distill")
    )
    assert any(row["loss_distill"] > 0 for row in rows) and any(
        row["loss_depth"] > 0 for row in rows
    )

    photo, out = photos / "images/a.jpg", tmp_path / "out"
    done = mforce(
        "sample",
        "--checkpoint",
        tmp_path / "forcing",
        "--mode",
        "i2d",
        "--image",
        photo,
        "--out",
        out,
    )
    assert (done.code, done.err) == (0, ""), done.err
    names = {f"a_depth{end}" for end in (".npy", ".png", ".json", "_color.png")}
    assert {path.name for path in out.iterdir()} == {*names, "manifest.jsonl"}
    with Image.open(photo) as opened:
        size = opened.size
    assert np.load(out / "a_depth.npy", allow_pickle=False).shape == size[::-1]

    done = mforce(
        "evaluate", "--checkpoint", tmp_path / "forcing", "--out", tmp_path / "scores.json"
    )
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == json.loads(done.out)
    assert scores["i2d"]["images"] + scores["i2d"]["skipped"] == 4 and scores["i2d"]["absrel"] > 0
    assert contents(photos) == before
