"""A small release of Modality Forcing through the command line: every mode, and an evaluation."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.generator import Generator
from modality_forcing.train import released
from tests.bundles import write_bundle
from tests.released import whole
from tests.runs import Command

SIDE = 32
INPUTS = {"i2d": ("--image", "photo.png"), "d2i": ("--depth", "depth.npy")}
INPUTS |= {"partial": INPUTS["d2i"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A release and inputs."""
    folder = tmp_path_factory.mktemp("released")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / "photo.png")
    np.save(folder / "depth.npy", rng.uniform(1, 9, (SIDE, SIDE)).astype(np.float32))
    whole(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small():
    """Makes releases work at few pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released, "_FORCING_SIDE", SIDE)
        yield


@pytest.fixture(scope="module")
def load():
    return functools.cache(Generator.from_checkpoint)


@pytest.fixture
def loaded_once(load, monkeypatch):
    """Gives all samples one network, so that less is compiled."""
    monkeypatch.setattr(Generator, "from_checkpoint", load)


def network(folder: Path) -> tuple[str, str]:
    return f"--checkpoint=mf-flux2:{folder / 'mf'}", f"--text-encoder=qwen3:{folder / 'qwen'}"


@pytest.mark.parametrize("mode", ["t2i", "joint", "refine", "i2d", "d2i", "partial"])
def test_release_samples_in_every_mode(folder: Path, mforce: Command, mode: str, loaded_once):
    out, task = folder / mode, "joint" if mode == "refine" else mode
    inputs = [folder / x if "." in x else x for x in INPUTS.get(mode, ())]
    more = ["--refine"] if mode == "refine" else []
    options = ["--mode", task, *inputs, *more, "--caption=a red cube", "--steps=1", "--out", out]
    done = mforce("sample", *network(folder), *options)
    assert done.code == 0, done.err
    stem = {"i2d": "photo", "d2i": "depth", "partial": "depth"}.get(mode, f"{task}_000")
    made = {"i2d": ["depth"], "joint": ["image", "depth"]}.get(task, ["image"])
    if "image" in made:
        with Image.open(out / f"{stem}_image.png") as image:
            assert image.size == (SIDE, SIDE)
    if "depth" in made:
        depth = np.load(out / f"{stem}_depth.npy")
        assert depth.shape == (SIDE, SIDE) and np.all(depth > 0) and np.all(np.isfinite(depth))


def test_release_is_scored_on_a_benchmark(folder: Path, mforce: Command):
    options = ["--benchmark=spring", "--root", write_bundle(folder / "data"), "--steps=1"]
    out = ["--out", folder / "scores", "--json"]
    done = mforce("evaluate", *network(folder), *options, *out)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert len(result["rows"]) == 3 and result["checkpoint"]["step"] == "mf-flux2"
