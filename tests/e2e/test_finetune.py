"""Fine-tuning: low-rank updates resume to the bit; FLUX.2 post-trains on its own T2I weights."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from modality_forcing.config_file import load
from modality_forcing.export import job
from modality_forcing.generator import Generator
from modality_forcing.models import lora
from modality_forcing.train import checkpoint
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from modality_forcing.tree import flatten
from tests import runs, tiny
from tests.resumed import LOOP, equal, rows


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return runs.save(tmp_path_factory.mktemp("base"), tiny.t2i())


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    """Six steps of low-rank updates, killed after the fifth and resumed from the third."""
    config = tiny.t2i(**LOOP, init_from=str(base), lora_rank=2, learning_rate=0.05)
    workdir = tmp_path_factory.mktemp("lora")
    whole = train(config, workdir)
    broken = tmp_path_factory.mktemp("broken")
    train(config, broken, stop_after=5)
    equal(train(config, broken), whole)
    assert rows(broken) == rows(workdir)
    return workdir


def test_base_weights_stay_and_updates_are_read_merged(base, finished):
    config, params = checkpoint.load(finished)
    assert config.train.lora_rank == 0
    start = flatten(checkpoint.load(base)[1])
    changed = {p for p, x in flatten(params).items() if not np.array_equal(x, start[p])}
    assert changed == {f"trunk/layers/{name}" for name in config.train.lora_targets}
    _, trained, frozen = checkpoint.load_unmerged(finished)
    jax.tree.map(np.testing.assert_array_equal, flatten(frozen), start)
    assert all(map(lora.is_update, flatten(trained)))
    table = (finished / "parameters.txt").read_text()
    assert "\nFrozen:\n" in table and "lora/q/a" in table.partition("Frozen")[0]


def test_export_is_merged_and_an_adapter_is_the_updates_alone(base, finished, tmp_path):
    whole = job.export(finished, tmp_path / "whole", "safetensors")
    assert "lora" not in (whole / "manifest.json").read_text().replace("lora_", "")
    adapter = job.export(finished, tmp_path / "adapter", "safetensors", adapter=True)
    listed = json.loads((adapter / "manifest.json").read_text())["weights"]
    assert listed.keys() == {p for p in listed if lora.is_update(p)} and len(listed) == 14
    merged = Generator.from_checkpoint(base, adapter=adapter)
    expected = Generator.from_checkpoint(finished)
    jax.tree.map(np.testing.assert_array_equal, merged.params, expected.params)


@pytest.mark.slow
def test_flux2_post_trains_on_its_own_text_to_image_run(mforce, tmp_path):
    t2i = load("flux2:size=tiny,task=t2i")
    source = runs.save(tmp_path / "t2i", t2i)
    options = ["--config.train.steps=2", "--config.train.batch=2"]
    run = ["train", "--config=flux2:size=tiny", f"--workdir={tmp_path / 'run'}", *options]
    refused = mforce(*run)
    assert refused.code == 2 and "train.distill needs train.init_from" in refused.err
    done = mforce(*run, f"--config.train.init_from={source}")
    assert done.code == 0, done.err
    assert "frozen" in done.out
    _, trained, frozen = checkpoint.load_unmerged(tmp_path / "run")
    before = flatten(checkpoint.load(source)[1])
    assert {p.rsplit("/", 1)[0] for p in flatten(frozen)} == {
        "double/layers/image",
        "double/layers/text",
    }
    for path, leaf in flatten(frozen).items():
        np.testing.assert_array_equal(leaf, before[path].astype(leaf.dtype))
    assert not np.array_equal(trained["single"]["layers"]["q"], before["single/layers/q"])
    (row,) = (row for row in read_metrics(tmp_path / "run") if "loss" in row)
    assert row["loss_distill"] > 0
    sampled = mforce(
        "sample",
        f"--checkpoint={tmp_path / 'run'}",
        "--mode=joint",
        "--steps=2",
        "--caption=a red cube",
        f"--out={tmp_path / 'out'}",
    )
    assert sampled.code == 0, sampled.err
