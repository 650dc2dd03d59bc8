"""A branch of a longer run is the run that was short from the start, to the bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.train.branch import restore_branch_point
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.optim import decay_start_step
from modality_forcing.train.state import TrainState, abstract_model, init_state
from modality_forcing.train.width_scaling import Recipe, with_horizon
from modality_forcing.train.workdir import write_config
from tests import tiny

RECIPE = Recipe(warmup_fraction=0.2, decay_fraction=0.5)
# 12 steps, constant from the 2nd to the 6th; checkpoints after 3, 6, 9 and 12.
TRUNK = with_horizon(
    replace(tiny.t2i(save_every=3, max_to_keep=9, log_every=2), name="trunk"), 48, RECIPE
)
# 8 steps, 4 of them cooling down.
SHORT = replace(with_horizon(TRUNK, 32, RECIPE, trunk=TRUNK), name="short")


def like(config: Config) -> TrainState:
    return jax.eval_shape(
        lambda p: init_state(config, p), abstract_model(config, base.build(config))[1]
    )


def branch_of(trunk: Path, config: Config = SHORT, **changes) -> Config:
    return replace(config, train=replace(config.train, branch_from=str(trunk), **changes))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trunk")
    train(TRUNK, workdir)
    return workdir


@pytest.fixture(scope="module")
def direct(tmp_path_factory) -> tuple[TrainState, Path]:
    """The short run from step 0."""
    workdir = tmp_path_factory.mktemp("direct")
    return train(SHORT, workdir), workdir


def losses(workdir: Path) -> list[tuple[float, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(workdir) if "loss" in row]


def test_branch_equals_the_short_run_to_the_bit(tmp_path, trunk, direct, capsys):
    assert (decay_start_step(TRUNK.train), decay_start_step(SHORT.train), SHORT.train.steps) == (
        6,
        4,
        8,
    )
    branched = train(branch_of(trunk), tmp_path)
    assert f"short: resuming from step 3 of 8 in {trunk}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, branched, direct[0])
    assert int(branched.step) == 8
    assert losses(tmp_path) == [row for row in losses(direct[1]) if row[0] > 3]


def test_branch_killed_before_its_first_checkpoint_restarts(tmp_path, trunk, direct):
    train(branch_of(trunk, save_every=5), tmp_path, stop_after=4)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    jax.tree.map(
        np.testing.assert_array_equal, train(branch_of(trunk, save_every=5), tmp_path), direct[0]
    )


def test_branch_starts_at_the_last_checkpoint_before_either_run_decays(trunk):
    # Cools from the 10th on, by when the trunk has begun.
    longer = with_horizon(TRUNK, 4 * 20, RECIPE, trunk=TRUNK)
    assert decay_start_step(longer.train) == 10
    assert int(restore_branch_point(branch_of(trunk, longer), like(longer))[0].step) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 0.5},
            r"the workdir holds a run with train\.learning_rate=0\.001, not 0\.5; a branch has all",
        ),
        ({"batch": 8}, r"train\.batch=4, not 8"),
        (
            {"warmup_fraction": 0.9},
            r"trunk\d*: the trunk warms up for 2 steps, this run for 7; set train\.warmup_fraction",
        ),
        (
            {"decay_fraction": 0.75},
            r"no checkpoint up to step 2, .*; there is 3, 6, 9, 12; .*save_every",
        ),
    ],
)
def test_config_that_differs_from_the_trunk_is_refused(tmp_path, trunk, changes, message):
    config = branch_of(trunk, **changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "branch")
    assert not (tmp_path / "branch").exists()


def test_changed_config_of_the_trunk_moves_no_branch_point(tmp_path, trunk):
    copy = tmp_path / "trunk"
    shutil.copytree(trunk, copy)
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"decay_fraction": 0.5', '"decay_fraction": 0.1'))
    what = r"config\.json: has train\.decay_fraction=0\.1, and the checkpoint .* 0\.5; "
    with pytest.raises(UserError, match=what):
        restore_branch_point(branch_of(copy), like(SHORT))


def test_cosine_schedule_cannot_be_branched(tmp_path):
    config = replace(TRUNK, train=replace(TRUNK.train, schedule="cosine"))
    write_config(tmp_path, config)
    with pytest.raises(UserError, match="no constant phase"):
        restore_branch_point(branch_of(tmp_path, config), like(config))


def test_trunk_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.branch_from is not the workdir of a run"):
        restore_branch_point(branch_of(tmp_path / "none"), like(SHORT))
    (tmp_path / "config.json").write_text(json.dumps({"name": 3}))
    with pytest.raises(UserError):
        restore_branch_point(branch_of(tmp_path), like(SHORT))
