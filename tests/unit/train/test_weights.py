"""The one door to weights: each kind of location, and that all readers go through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.export import job
from modality_forcing.generator import Generator, load_weights
from modality_forcing.models.int8 import Int8Weight
from modality_forcing.train import checkpoint
from modality_forcing.train.initial_weights import load_source
from modality_forcing.train.weights import describe, open_weights
from modality_forcing.train.workdir import resolve_paths
from tests import released, tiny


@pytest.fixture(scope="module")
def exported(tmp_path_factory, forcing_run: Path) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    return job.export(forcing_run, out, "safetensors")


def test_each_kind_of_location_has_its_name(exported: Path, forcing_run: Path, tmp_path: Path):
    step = forcing_run / "checkpoints" / "0"
    for where in (forcing_run, forcing_run / "checkpoints", step):
        assert (open_weights(where).name, open_weights(where).where) == ("0", step)
    assert open_weights(exported).where == exported
    assert open_weights(str(exported / "weights.safetensors")).name == "0"
    spec = released.release(tmp_path / "release")
    assert (open_weights(spec).name, open_weights(spec).where) == ("mf-flux2", spec)
    with pytest.raises(UserError, match=r"empty: holds no checkpoint; give a workdir, .* export"):
        (tmp_path / "empty").mkdir()
        open_weights(tmp_path / "empty")


def test_export_is_8_bits_on_request(exported: Path, forcing_run: Path):
    _, found = load_weights(exported, int8=True)
    _, expected = load_weights(forcing_run, int8=True)
    kinds = {
        type(leaf) for leaf in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Int8Weight))
    }
    assert Int8Weight in kinds
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_run_starts_from_an_export_as_from_its_run(exported: Path, forcing_run: Path):
    config = tiny.forcing(init_from=str(exported / "weights.safetensors"))
    found_config, found = load_source(config, lambda t: jax.tree.map(first_device, t))
    expected_config, expected = checkpoint.load(forcing_run)
    assert found_config == expected_config
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def first_device(_: object) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_hub_id_of_a_run_stays_what_it_is():
    config = resolve_paths(tiny.forcing(init_from="hf:owner/name@v1"))
    assert config.train.init_from == "hf:owner/name@v1"
    relative = resolve_paths(tiny.forcing(init_from="out/weights.safetensors"))
    assert Path(relative.train.init_from).is_absolute()


def test_weights_of_another_config_are_refused(exported: Path, tmp_path: Path):
    export = open_weights(exported)
    wider = replace(tiny.forcing(), model=replace(tiny.MODEL, num_layers=3))
    object.__setattr__(export, "config", wider)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modality_forcing.generator.open_weights", lambda where: export)
        with pytest.raises(UserError, match=r"out: the weights do not fit \(misshaped"):
            Generator.from_checkpoint(exported)


def test_weights_are_described_without_being_read(
    exported: Path, forcing_run: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(jax, "make_array_from_callback", None)
    config, dtype = describe(released.release(tmp_path))
    assert (config.model.width, dtype) == (released.SMALL_FORCING.width, "bfloat16")
    assert describe(forcing_run) == describe(exported) == (tiny.forcing(), "float32")
