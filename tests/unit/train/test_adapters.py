"""Adapters: a run's trained weights on the network that it started from; others are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.export import job
from modality_forcing.train import checkpoint
from modality_forcing.train.adapters import apply_adapter
from modality_forcing.train.exported import open_export
from tests import damage, runs, tiny

LORA = tiny.t2i(lora_rank=2, lora_alpha=3.0, frozen_dtype="bfloat16", lora_targets=("q", "down"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return runs.save(tmp_path_factory.mktemp("run"), LORA)


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "adapter"
    return job.export(run, out, "safetensors", adapter=True)


def test_adapter_on_its_base_is_the_merged_checkpoint(run, adapter):
    _, trained, frozen = checkpoint.load_unmerged(run)
    config, params = apply_adapter(adapter, frozen)
    expected_config, expected = checkpoint.load(run)
    assert config == expected_config
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    weights = open_export(adapter, adapter=True).load()[1]
    jax.tree.map(np.testing.assert_array_equal, weights, trained)
    assert sum(file.stat().st_size for file in adapter.iterdir()) < 40_000


def test_whole_export_holds_matrices_in_the_type_that_they_are_kept_in(run, tmp_path):
    whole = job.export(run, tmp_path / "whole", "safetensors")
    (_, found), (_, expected) = open_export(whole).load(), checkpoint.load(run)
    assert {str(x.dtype) for x in jax.tree.leaves(found)} == {"float32", "bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match=r"whole: is not an adapter; .* export --adapter"):
        apply_adapter(whole, {})


def test_run_that_trained_all_its_weights_has_no_adapter(tmp_path):
    runs.save(tmp_path / "run", tiny.t2i())
    with pytest.raises(UserError, match="run: trained all its weights: there is no adapter"):
        job.export(tmp_path / "run", tmp_path / "out", "safetensors", adapter=True)
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_network_is_refused(adapter):
    config = tiny.t2i()
    wider = replace(config, model=replace(config.model, width=64))
    message = r"adapter: does not fit the network: trunk/layers/lora/\w+/[ab] \("
    with pytest.raises(UserError, match=message):
        apply_adapter(adapter, tiny.network(wider)[1])
    with pytest.raises(UserError, match=message):
        apply_adapter(adapter, tiny.network(tiny.flux2())[1])


@damage.examples(30)
@given(st.data())
def test_damage_is_one_line_or_harmless(adapter, tmp_path_factory, data):
    copy = tmp_path_factory.mktemp("copy") / "adapter"
    shutil.copytree(adapter, copy)
    name = data.draw(st.sampled_from(["manifest.json", "weights.safetensors"]))
    content = (copy / name).read_bytes()
    strategy = damage.of(content)
    if name == "manifest.json":
        strategy |= damage.of_json(content)
    (copy / name).write_bytes(data.draw(strategy))
    try:
        _, weights = open_export(copy, adapter=True).load()
    except UserError as error:
        assert str(copy) in str(error) and "\n" not in str(error)
        return
    expected = open_export(adapter, adapter=True).load()[1]
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
