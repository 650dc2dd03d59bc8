"""A state, and a workdir with its checkpoint, for the tests of saving and of reading."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from modality_forcing.modalities import base
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState, abstract_model, init_state
from tests import tiny
from tests.saved import CONFIG, EXTRA


@pytest.fixture(scope="session")
def state() -> TrainState:
    """A state whose weights, average and moments all differ."""
    made = init_state(CONFIG, tiny.network(CONFIG)[1])

    def fill(tree, seed):
        return jax.tree.map(jnp.asarray, tiny.perturbed({"": tree}, seed)[""])

    moments = jax.tree.map(lambda x: x if x.ndim == 0 else x + 0.25, made.opt_state)
    return TrainState(jnp.int32(3), made.params, moments, fill(made.ema, 1))


@pytest.fixture(scope="session")
def abstract() -> TrainState:
    shapes = abstract_model(CONFIG, base.build(CONFIG))[1]
    return jax.eval_shape(lambda p: init_state(CONFIG, p), shapes)


@pytest.fixture(scope="session")
def saved(tmp_path_factory, state) -> Path:
    """A workdir with one checkpoint, of step 3; for reading only."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(state, CONFIG, EXTRA)
    checkpoints.close()
    return workdir


@pytest.fixture
def copy(tmp_path, saved) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run"))
