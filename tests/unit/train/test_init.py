"""What a run starts from, without a step; tests/e2e/test_resume.py trains from there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

from modality_forcing.config import Config, to_dict
from modality_forcing.errors import UserError
from modality_forcing.train import init
from modality_forcing.train.init import Run
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState
from tests import tiny
from tests.runs import contents
from tests.saved import CONFIG, EXTRA


@contextmanager
def started(config: Config, workdir: Path, *more: Any) -> Iterator[tuple[Run, TrainState]]:
    run, state = init.init_run(config, workdir, *more)
    try:
        yield run, state
    finally:
        run.batches.close()
        run.checkpoints.close()


def equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_new_run_has_fresh_weights_and_describes_itself(tmp_path, capsys):
    with started(CONFIG, tmp_path / "run") as (run, state):
        assert (run.start_step, run.metadata, run.evaluate) == (0, {}, None)
        assert run.checkpoints.latest() is None
        batch = next(run.batches)
    equal(state.ema, state.params)
    assert int(state.step) == 0 and np.any(state.params["trunk"]["layers"]["q"])
    assert batch["image"].shape == (CONFIG.train.batch, 16, 16, 3)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
    assert json.loads((tmp_path / "run/config.json").read_text()) == to_dict(CONFIG)
    table = (tmp_path / "run/parameters.txt").read_text()
    assert "trunk/layers/q" in table and "Frozen" not in table
    assert capsys.readouterr().out == "t2i: 0.04 M parameters in 19 arrays\n"


def test_run_resumes_with_the_state_and_the_batches_of_its_checkpoint(copy, state, capsys):
    (copy / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    with started(CONFIG, copy) as (run, restored):
        equal(restored, state)
        assert run.start_step == 3
        assert {name: run.metadata[name] for name in EXTRA} == EXTRA
        assert run.batches.get_state() == EXTRA["data_state"]
        found = next(run.batches)["index"]
        equal(run.restore()[0], state)
    first = EXTRA["data_state"]["batches"] * CONFIG.train.batch
    np.testing.assert_array_equal(found, np.arange(first, first + CONFIG.train.batch))
    resuming = f"t2i: resuming from step 3 of 6 in {copy}"
    assert capsys.readouterr().out.splitlines()[0] == resuming


def test_checkpoint_of_the_workdir_comes_before_a_trunk_and_initial_weights(saved):
    setup = init.set_up(tiny.t2i(init_from="nowhere", branch_from="trunk"))
    checkpoints = Checkpoints(saved / "checkpoints")
    assert int(init.initial_state(setup, checkpoints)[0].step) == 3
    checkpoints.close()
    with pytest.raises(UserError, match=r"trunk: train\.branch_from is not the workdir of a run"):
        init.initial_state(setup)


def test_weights_of_another_run_are_its_ema_in_step_0(tmp_path, saved, state, capsys):
    config = tiny.t2i(init_from=str(saved))
    with started(config, tmp_path / "run") as (run, first):
        assert (run.start_step, run.metadata) == (0, {})
        assert run.batches.get_state() == {"batches": 0}
    equal(first.params, state.ema)
    equal(first.ema, state.ema)
    assert int(first.step) == 0 and not any(map(np.any, jax.tree.leaves(first.opt_state)))
    assert "resuming" not in capsys.readouterr().out


@pytest.mark.usefixtures("unchecked")
def test_summary_counts_frozen_weights_and_names_the_layout():
    config = tiny.forcing(init_from="nowhere", freeze=("trunk",))
    setup = init.set_up(config)
    setup.batches.close()
    trained, frozen = map(jax.tree.leaves, (setup.abstract.params, setup.abstract.frozen))
    expected = rf"forcing: 0\.\d\d M parameters in {len(trained + frozen)} arrays, of them "
    expected += rf"0\.\d\d M parameters in {len(frozen)} arrays frozen"
    assert re.fullmatch(expected, setup.summary()) and trained and frozen
    several = replace(setup, mesh=cast(Any, SimpleNamespace(size=8)))
    assert several.summary() == f"{setup.summary()}, 8 devices, zero2"


def test_records_and_evaluation_are_those_of_the_caller(tmp_path):
    config = replace(CONFIG, data=replace(CONFIG.data, source="folder", root="nowhere"))
    records = init.open_inputs(CONFIG).source
    seen: list[Any] = []

    def make_evaluate(*of: Any) -> Any:
        seen.append(of)
        return print

    with started(config, tmp_path, records, make_evaluate) as (run, _):
        assert run.evaluate is print and run.batches.records(0)
    ((evaluated, inputs, mesh),) = seen
    assert evaluated == config and inputs.source is records and mesh.size == jax.device_count()


def test_records_are_checked_before_anything_is_written(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("no image")
    data = replace(CONFIG.data, source="folder", root=str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image"):
        init.init_run(replace(CONFIG, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (tiny.t2i(init_from="nowhere"), "nowhere: no such checkpoint"),
        (replace(CONFIG, data=replace(CONFIG.data, source="folder", root="none")), "none"),
        (replace(CONFIG, mesh=replace(CONFIG.mesh, fsdp=3)), r"does not fit 1 devices"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        init.init_run(changed, tmp_path / "run")
    assert contents(tmp_path) == {}


def test_evaluation_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    def refuse(*_: Any) -> Any:
        raise UserError("no such benchmark")

    with pytest.raises(UserError, match="no such benchmark"):
        init.init_run(CONFIG, tmp_path / "run", None, refuse)
    assert contents(tmp_path) == {}
