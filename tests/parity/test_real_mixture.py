"""Real samples from their own layouts: prepared, inspected, mixed, trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.pipeline import train_batches
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.train import inputs
from tests.runs import CONFIGS, SMALL, process

SAMPLES = {
    "kitti_raw": "kitti_object",
    "kitti_depth": "metric3d_kitti_demo",
    "seven_scenes": "tsdf_fusion_rgbd",
    "colmap": "gtsfm_lund_door_colmap_txt",
    "tartanair": "tartanair_P000",
}
FRAMES = {"kitti_raw": 2, "kitti_depth": 1, "seven_scenes": 3, "colmap": 2, "tartanair": 2}


@pytest.fixture(scope="module")
def prepared(real_data: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    for name, sample in SAMPLES.items():
        options = ("--root", real_data / sample, "--out", root / name, "--resolution", 96)
        done = process("prepare", "--dataset", name, *options)
        assert done.code == 0, done.err
    return root


def test_inspect_lists_the_records(prepared: Path, tmp_path: Path):
    for name, frames in FRAMES.items():
        sheet = tmp_path / f"{name}.png"
        done = process("inspect", prepared / name, "--json", "--verify", "--sheet", sheet)
        assert done.code == 0, done.err
        assert json.loads(done.out)["records"] == frames and sheet.is_file()


def test_frames_are_equally_likely(prepared: Path):
    from modality_forcing.config_file import load

    config = load(f"{CONFIGS / 'mixtures.py'}:root={prepared},sets=offline,size=demo")
    assert config.data.mixture == FRAMES
    components = inputs.open_inputs(config).source
    batches = train_batches(components, HashedWordTokenizer(), batch=10, seed=0, resolution=64)
    for _ in range(6):
        next(batches)
    stats = batches.pop_stats()
    batches.close()
    counts = [stats[f"share/{name}"] * 60 for name in FRAMES]
    np.testing.assert_allclose(counts, [6 * frames for frames in FRAMES.values()], atol=1e-3)
    assert 0.01 < stats["valid/kitti_raw"] < 0.5 < stats["valid/seven_scenes"] <= 1
    assert stats["valid/tartanair"] == 1


def test_mixture_trains(prepared: Path, tmp_path: Path):
    spec = f"--config={CONFIGS / 'mixtures.py'}:root={prepared},sets=offline,size=demo"
    short = [
        "--config.train.steps=4",
        "--config.train.batch=10",
        "--config.train.log_every=2",
        "--config.data.workers=0",
    ]
    done = process("train", spec, *SMALL, *short, "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("data/share/colmap" in row for row in rows)
    assert all(np.isfinite(row.get("loss", 0)) for row in rows)
