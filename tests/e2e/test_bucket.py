"""A whole project in a bucket: every command, killed and resumed; nothing renamed, none local."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from modality_forcing import paths
from modality_forcing.data.files import DepthFormat, read_depth
from modality_forcing.datasets import registry
from modality_forcing.train import checkpoint
from modality_forcing.train.loop import train
from modality_forcing.train.metric_rows import read_metrics
from tests import frozen as small
from tests import tiny
from tests.bucket import Bucket
from tests.runs import SMALL, killed, save

STEPS = {"steps": 6, "save_every": 2, "log_every": 1}


@pytest.fixture(autouse=True)
def clean(bucket: Bucket, gs_path: Path) -> Iterator[None]:
    """Checks after each test that nothing was renamed and no local path was written."""
    yield
    moved = [
        path
        for _, path in bucket.requests
        if any(x in path for x in ("copyTo", "rewriteTo", "moveTo"))
    ]
    assert moved == []
    for name in bucket.names(str(gs_path).removeprefix(f"{bucket.address}/")):
        if name.endswith((".json", ".jsonl", ".csv", "metadata", ".txt")):
            assert tempfile.gettempdir().encode() not in bucket.content(name), name


def weights(workdir: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint.load(workdir)[1])]


def equal(one: Path, other: Path) -> bool:
    pairs = zip(weights(one), weights(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def losses(workdir: Path) -> list[tuple[float, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(workdir) if "loss" in row]


def test_run_in_a_bucket_resumes_and_equals_one_on_a_disk(gs_path, tmp_path):
    config = tiny.t2i(**STEPS)
    train(config, tmp_path / "run")
    train(config, gs_path / "run", stop_after=5)
    assert not paths.exists(gs_path / "run" / ".lock")
    train(config, gs_path / "run")
    assert equal(gs_path / "run", tmp_path / "run")
    assert losses(gs_path / "run") == losses(tmp_path / "run")
    assert [path.name for path in paths.list_dir(gs_path / "run" / "checkpoints")] == ["4", "6"]
    assert len(paths.list_dir(gs_path / "run" / "events")) >= 2


def test_killed_run_resumes(bucket, gs_path, mforce):
    arguments = (
        "train", "--config=demo:phase=t2i", f"--workdir={gs_path}", *SMALL,
        "--config.train.steps=8", "--config.train.batch=4", "--config.train.save_every=2",
        "--config.train.log_every=2", "--config.data.num_scenes=8", "--config.data.workers=0",
    )  # fmt: skip
    first = "/".join(str(gs_path).split("/")[3:]) + "/checkpoints/2/meta"
    done = killed(*arguments, when=lambda: bool(bucket.names(first)))
    assert done.code != 0
    done = mforce(*arguments)  # the lock of the killed process is free at once on this machine
    assert done.code == 0, done.err
    assert "resuming from step" in done.out
    assert [row["step"] for row in read_metrics(gs_path) if "loss" in row] == [2, 4, 6, 8]


def test_checkpoint_in_a_bucket_serves_every_command(gs_path, mforce):
    source = save(gs_path / "run", tiny.forcing())
    done = mforce("sample", "--checkpoint", source, "--mode=joint", "--caption=a", "--steps=2",
                  "--out", gs_path / "samples")  # fmt: skip
    assert done.code == 0, done.err
    names = {path.name for path in paths.list_dir(gs_path / "samples")}
    assert {"joint_000_image.png", "joint_000_depth.npy", "joint_000_depth.png"} <= names
    image = gs_path / "samples/joint_000_image.png"
    done = mforce("sample", "--checkpoint", source, "--mode=i2d", "--caption=a", "--steps=2",
                  "--out", gs_path / "i2d", "--image", image)  # fmt: skip
    assert done.code == 0, done.err
    read_depth(gs_path / "samples/joint_000_depth.npy", DepthFormat())
    done = mforce("evaluate", "--checkpoint", source, "--examples=2", "--steps=2", "--out",
                  gs_path / "scores", "--save-images", gs_path / "images")  # fmt: skip
    assert done.code == 0, done.err
    assert paths.exists(gs_path / "images")
    for kind in ("orbax", "safetensors"):
        out = gs_path / kind
        done = mforce("export", "--checkpoint", source, "--out", out, "--format", kind)
        assert done.code == 0, done.err
        assert json.loads(paths.read_text(out / "manifest.json"))["weights"]
        done = mforce("export", "--checkpoint", source, "--out", out, "--format", kind)
        assert done.code == 2 and "already exists" in done.err


def test_caches_and_shards_in_a_bucket_are_those_of_a_disk(gs_path, tmp_path, mforce, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, image = small.text_folder(tmp_path / "text"), small.image_folder(tmp_path / "image")
    records = small.prepared(tmp_path / "records")
    for folder in (records, text, image):
        for file in folder.rglob("*"):
            if file.is_file():
                name = file.relative_to(tmp_path).as_posix()
                paths.write_file(gs_path / name, file.read_bytes())
    for root in (tmp_path, gs_path):
        done = mforce(
            "encode", "--source", root / "records", "--out", root / "encoded",
            f"--text=umt5:{root / 'text'}", f"--image=flux2:{root / 'image'}",
            "--resolution", small.PIXELS, "--tokens", small.TOKENS, "--shard-size", 4,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert mforce("inspect", root / "records").code == 0
    written = [path for path in (tmp_path / "encoded").rglob("*") if path.is_file()]
    assert written
    for path in written:
        name = path.relative_to(tmp_path).as_posix()
        if path.suffix != ".json":
            assert paths.read_bytes(gs_path / name) == path.read_bytes(), name
    train(small.config(gs_path / "records", cache=gs_path / "encoded"), gs_path / "run")
    assert paths.exists(gs_path / "run" / "checkpoints")


def test_prepared_folder_in_a_bucket_is_that_of_a_disk(gs_path, tmp_path, mforce, monkeypatch):
    monkeypatch.setattr(registry, "NAMES", (*registry.NAMES, "folder"))
    (tmp_path / "from" / "images").mkdir(parents=True)
    for index in range(6):
        image = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"from/images/{index}.png")
    for root in (tmp_path, gs_path):
        done = mforce("prepare", "--dataset=folder", "--root", tmp_path / "from", "--out",
                      root / "out", "--shard-size=4", "--workers=2")  # fmt: skip
        assert done.code == 0, done.err
    on_disk = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert len(on_disk) == 9
    assert {name: paths.read_bytes(gs_path / name) for name in on_disk} == on_disk
    done = mforce("prepare", "--dataset=folder", "--root", gs_path / "from", "--out",
                  tmp_path / "x")  # fmt: skip
    assert done.code == 2 and "unpacked data sets are read from disks" in done.err


def test_sweep_in_a_bucket_has_the_rows_of_one_on_a_disk(gs_path, tmp_path, mforce):
    config = tmp_path / "sweep_tiny.py"
    config.write_text(SWEEP)
    for arg, workdir, cells in ((":one", tmp_path / "sweep", 1), ("", gs_path / "sweep", 2)):
        done = mforce("sweep", f"--config={config}{arg}", f"--workdir={workdir}")
        assert done.code == 0, done.err
        assert f"{cells} of {cells} cells are done" in done.out
    (on_disk,) = (tmp_path / "sweep" / "rows.jsonl").read_text().splitlines()
    in_bucket = paths.read_text(gs_path / "sweep" / "rows.jsonl").splitlines()
    assert len(in_bucket) == 2 and on_disk in in_bucket
    done = mforce("sweep", f"--config={config}", f"--workdir={gs_path / 'sweep'}")
    assert done.code == 0 and "2 of 2 cells are done" in done.out


SWEEP = """
from dataclasses import replace
from modality_forcing.sweeps.spec import Records, Run, axis, sweep
from tests import tiny

def cell(seed):
    config = tiny.forcing(steps=2, save_every=2, log_every=1, allow_missing_modalities=())
    return Run("forcing", replace(config, seed=seed))

def get_sweep(arg):
    seeds = axis("seed", 0) if arg == "one" else axis("seed", 0, 1)
    return sweep("tiny", seeds, cell, Records(draws=2))
"""
