"""Resumed runs equal uninterrupted ones to the bit, across phases and after a full disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.evaluation.while_training import make_evaluate
from modality_forcing.train import checkpoint
from modality_forcing.train.evaluation import EvalResult, Evaluate
from modality_forcing.train.inputs import Inputs
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import Params, TrainState
from modality_forcing.train.workdir import write_config
from tests import tiny
from tests.resumed import LOOP, T2I, equal, extras, rows


def forcing(init: Path) -> Config:
    config = tiny.forcing(**LOOP, init_from=str(init), distill=True)
    depth = replace(config.modalities["depth"], detokenizer_layers=0)  # compiles faster
    config = replace(config, modalities={**config.modalities, "depth": depth})
    return replace(
        config, data=replace(config.data, sparsity_patterns={"uniform": 1.0, "missing": 0.5})
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[TrainState, Path]:
    """The same six steps: killed after the fifth, which loses two, and resumed."""
    workdir = tmp_path_factory.mktemp("broken")
    killed = train(T2I, workdir, stop_after=5)
    assert int(killed.step) == 5 and checkpoint.resolve_checkpoint(workdir).name == "3"
    return train(T2I, workdir), workdir


def test_resumed_run_equals_uninterrupted_run_to_the_bit(finished, broken):
    equal(broken[0], finished[0])
    assert int(finished[0].step) == 6


def test_resumed_run_has_the_same_next_batch(finished, broken):
    assert extras(broken[1]) == extras(finished[1])
    assert extras(finished[1])["data_state"] == {"batches": 6}


def test_resumed_run_writes_the_same_metrics(finished, broken):
    assert rows(broken[1]) == rows(finished[1])
    assert [row["step"] for row in rows(finished[1])] == [2, 4, 6]


def norm_of(config: Config, inputs: Inputs, mesh: Mesh) -> Evaluate:
    """A cheap evaluation that depends on every weight."""

    def evaluate(params: Params) -> EvalResult:
        norm = sum(float(np.abs(jax.device_get(x)).sum()) for x in jax.tree.leaves(params))
        return EvalResult({"norm": norm}, np.full((4, 6, 3), 7, np.uint8))

    return evaluate


def evaluated(every: int, **train: Any) -> Config:
    config = replace(T2I, train=replace(T2I.train, **train))
    return replace(config, eval=replace(config.eval, every=every))


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory) -> tuple[TrainState, Path]:
    """The same six steps, with an evaluation after every third."""
    workdir = tmp_path_factory.mktemp("evaluated")
    return train(evaluated(3), workdir, make_evaluate=norm_of), workdir


def test_evaluation_changes_no_weight(finished, evaluated_run):
    equal(evaluated_run[0], finished[0])
    without = [row for row in rows(evaluated_run[1]) if "loss" in row]
    assert without == rows(finished[1])


def test_evaluation_is_of_the_ema_before_the_step(evaluated_run):
    state, workdir = evaluated_run
    found = {row["step"]: row["eval/norm"] for row in rows(workdir) if "eval/norm" in row}
    assert list(found) == [0, 3, 6] and len(set(found.values())) == 3
    norm = norm_of(T2I, cast(Any, None), cast(Any, None))(state.ema)
    assert found[6] == norm.scalars["norm"]
    names = sorted(path.name for path in (workdir / "sheets").iterdir())
    assert names == ["00000000.png", "00000003.png", "00000006.png"]
    assert all("perf/eval_s" in row for row in read_metrics(workdir) if "eval/norm" in row)


@pytest.mark.parametrize("killed_after", (1, 3, 4))
def test_resumed_run_has_each_evaluation_once(evaluated_run, tmp_path, killed_after):
    """Killed before the first save, at the step that is saved and evaluated, and after it."""
    train(evaluated(3), tmp_path, make_evaluate=norm_of, stop_after=killed_after)
    state = train(evaluated(3), tmp_path, make_evaluate=norm_of)
    equal(state, evaluated_run[0])
    assert rows(tmp_path) == rows(evaluated_run[1])


def test_evaluation_between_saves_is_done_again(evaluated_run, tmp_path):
    config = evaluated(2, save_every=3)
    train(config, tmp_path, make_evaluate=norm_of, stop_after=5)  # evaluated at 4, saved at 3
    equal(train(config, tmp_path, make_evaluate=norm_of), evaluated_run[0])
    assert [row["step"] for row in rows(tmp_path) if "eval/norm" in row] == [0, 2, 4, 6]


def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(tmp_path):
    config = evaluated(3)
    config = replace(config, eval=replace(config.eval, benchmark="nyuv3", benchmark_root="x"))
    with pytest.raises(UserError, match="mode i2d needs a second modality"):
        train(config, tmp_path / "run", make_evaluate=make_evaluate)
    assert not (tmp_path / "run" / "config.json").exists()


def test_metric_row_is_the_mean_of_its_steps(finished, tmp_path):
    """Rows of a run that logs every step average to the rows of this one."""
    each = replace(T2I, train=replace(T2I.train, log_every=1, save_every=4))
    train(each, tmp_path)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert len(set(losses)) == 6
    np.testing.assert_allclose(
        [row["loss"] for row in rows(finished[1])], np.reshape(losses, (3, 2)).mean(1), rtol=1e-6
    )


def test_training_moves_the_weights_and_the_ema_lags(finished):
    state, _ = finished
    moved = jax.tree.map(lambda p, e: bool(np.any(p != e)), state.params, state.ema)
    assert sum(jax.tree.leaves(moved)) > 0.8 * len(jax.tree.leaves(moved))


def test_last_checkpoint_equals_the_returned_state(finished):
    state, workdir = finished
    checkpoints = Checkpoints(workdir / "checkpoints")
    back, _ = checkpoints.restore(state)
    checkpoints.close()
    equal(back, state)


def test_finished_run_is_not_changed_by_a_second_call(finished, capsys):
    state, workdir = finished
    before = (workdir / "metrics.jsonl").read_text()
    equal(train(T2I, workdir), state)
    assert (workdir / "metrics.jsonl").read_text() == before
    assert "resuming from step 6 of 6" in capsys.readouterr().out


@pytest.fixture(scope="module")
def handed_over(finished, tmp_path_factory) -> tuple[TrainState, Path]:
    workdir = tmp_path_factory.mktemp("forcing")
    return train(forcing(finished[1]), workdir), workdir


def test_interrupted_post_training_from_an_interrupted_run_is_equal(
    broken, handed_over, tmp_path, capsys
):
    config = forcing(broken[1])
    train(config, tmp_path, stop_after=4)
    state = train(config, tmp_path)
    assert "forcing: resuming from step 3 of 6" in capsys.readouterr().out
    equal(state, handed_over[0])
    assert rows(tmp_path) == rows(handed_over[1])
    assert extras(tmp_path) == extras(handed_over[1])


def test_post_training_starts_from_the_ema_of_the_first_phase(finished, tmp_path):
    started = train(forcing(finished[1]), tmp_path, stop_after=0)
    _, pretrained = checkpoint.load(finished[1])
    np.testing.assert_array_equal(
        started.params["trunk"]["layers"]["q"], pretrained["trunk"]["layers"]["q"]
    )
    np.testing.assert_array_equal(
        pretrained["trunk"]["layers"]["q"], finished[0].ema["trunk"]["layers"]["q"]
    )


def test_post_training_needs_new_modalities_to_be_named(finished, tmp_path):
    config = forcing(finished[1])
    config = replace(config, train=replace(config.train, allow_missing_modalities=()))
    with pytest.raises(UserError, match=r"missing: head/depth/.*train\.allow_missing_modalities"):
        train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


# ---- User errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(T2I, seed=4), r"seed=3, not 4"),
        (replace(T2I, train=replace(T2I.train, steps=7)), r"train\.steps=6, not 7"),
        (replace(T2I, model=replace(T2I.model, width=64)), r"model\.width=32, not 64"),
        (tiny.forcing(**LOOP), r"the workdir holds a run with "),
    ],
)
def test_workdir_of_another_config_is_refused(finished, changed, message):
    before = {p: p.stat().st_mtime_ns for p in finished[1].rglob("*")}
    with pytest.raises(UserError, match=rf"{finished[1].name}.*{message}.*--workdir"):
        train(changed, finished[1])
    assert {p: p.stat().st_mtime_ns for p in finished[1].rglob("*")} == before


def test_damaged_config_of_a_workdir_is_told_from_another_run(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    path, right = workdir / "config.json", T2I.train.learning_rate
    text = path.read_text().replace(f'"learning_rate": {right}', f'"learning_rate": {2 * right}')
    path.write_text(text)
    what = f"config.json: has train.learning_rate={2 * right}, and the checkpoint .* {right}; "
    agrees = replace(T2I, train=replace(T2I.train, learning_rate=2 * right))
    for config in (T2I, agrees):
        with pytest.raises(UserError, match=what):
            train(config, workdir)
    path.write_text((finished[1] / "config.json").read_text())
    with pytest.raises(UserError, match=r"holds a run with train\.learning_rate"):
        train(agrees, workdir)


def test_non_identity_keys_may_change_on_resume(finished):
    watched = replace(T2I, train=replace(T2I.train, log_every=1, save_every=5, max_to_keep=2))
    equal(train(watched, finished[1]), finished[0])


@pytest.mark.parametrize("text", ["{", "[]", "5"])
def test_workdir_with_unreadable_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="--workdir"):
        write_config(tmp_path, T2I)


def test_workdir_with_checkpoints_but_no_config_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"without a config\.json"):
        write_config(tmp_path, T2I)


def test_missing_initial_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such checkpoint"):
        train(forcing(tmp_path / "nowhere"), tmp_path / "run")
