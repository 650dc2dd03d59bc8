"""Resumed runs equal uninterrupted ones to the bit, across phases and after a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from modality_forcing import locks, signals
from modality_forcing.config import Config
from modality_forcing.data.prefetch import PrefetchToDevice
from modality_forcing.errors import UserError
from modality_forcing.evaluation.while_training import make_evaluate
from modality_forcing.train import checkpoint
from modality_forcing.train.evaluation import EvalResult, Evaluate
from modality_forcing.train.inputs import Inputs
from modality_forcing.train.logger import MEASURED
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import Params, TrainState
from modality_forcing.train.workdir import write_config
from tests import tiny

TIMES = {"elapsed_s", "clock"}  # in the metadata of checkpoints
LOOP = {"steps": 6, "save_every": 3, "log_every": 2}
T2I = tiny.t2i(**LOOP)


def forcing(init: Path) -> Config:
    config = tiny.forcing(**LOOP, init_from=str(init), distill=True)
    depth = replace(config.modalities["depth"], detokenizer_layers=0)  # compiles faster
    config = replace(config, modalities={**config.modalities, "depth": depth})
    return replace(
        config, data=replace(config.data, sparsity_patterns={"uniform": 1.0, "missing": 0.5})
    )


def equal(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rows(workdir: Path) -> list[dict[str, float]]:
    found = [
        {k: v for k, v in row.items() if not k.startswith(MEASURED)}
        for row in read_metrics(workdir)
    ]
    return [row for row in found if set(row) != {"step"}]


def extras(workdir: Path) -> dict[str, Any]:
    """The metadata of the latest checkpoint, with the position of the data stream."""
    meta = checkpoint.resolve_checkpoint(workdir) / "meta"
    (description,) = (p for p in meta.rglob("*") if p.is_file() and p.name == "metadata")
    metadata = json.loads(description.read_text())
    return {k: v for k, v in metadata.items() if k not in TIMES | {"config", "checksum"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[TrainState, Path]:
    """Six uninterrupted steps."""
    workdir = tmp_path_factory.mktemp("finished")
    return train(T2I, workdir), workdir


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


CONFIG_FILE = """
from tests import tiny

def get_config(arg):
    return tiny.t2i(steps=6, save_every=3, log_every=2)
"""

LIMITED = """
import resource, sys
from modality_forcing.cli import main

# Python ignores the signal, so that writing just fails.
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[1:]))
"""


def test_second_run_in_the_workdir_is_refused(finished, tmp_path):
    with locks.hold(tmp_path, "--workdir"):
        with pytest.raises(UserError, match="is in use by process"):
            train(T2I, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK]


def during_save(monkeypatch) -> None:
    save = Checkpoints.save

    def interrupted(checkpoints, state, *rest):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # a thread receives it
        save(checkpoints, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", interrupted)


def during_step(monkeypatch) -> None:
    """In the fourth step, which no checkpoint follows."""
    get_next = PrefetchToDevice.__next__
    delivered = count(1)

    def interrupted(batches):
        if next(delivered) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # a thread receives it
        return get_next(batches)

    monkeypatch.setattr(PrefetchToDevice, "__next__", interrupted)


@pytest.mark.parametrize(
    ("interrupt", "saved", "code"), [(during_save, "3", 130), (during_step, "4", 143)]
)
def test_signal_saves_the_step_in_flight_and_the_run_resumes_to_the_bit(
    finished, tmp_path, monkeypatch, interrupt, saved, code
):
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(signals.StopRequest, match=f"at step {saved}, which is saved") as ended:
            train(T2I, tmp_path)
    assert signals.exit_code(ended.value) == code
    assert checkpoint.resolve_checkpoint(tmp_path).name == saved
    assert not (tmp_path / locks.LOCK).exists()
    equal(train(T2I, tmp_path), finished[0])
    assert rows(tmp_path) == rows(finished[1]) and extras(tmp_path) == extras(finished[1])


def test_run_saves_by_the_clock(finished, tmp_path, monkeypatch):
    """A clock that is always due saves every step, and the numbers stay."""
    saved = []
    save = Checkpoints.save

    def counted(checkpoints, state, *rest):
        saved.append(int(state.step))
        save(checkpoints, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", counted)
    loop = replace(T2I.train, save_every=100, save_every_minutes=1e-9)
    equal(train(replace(T2I, train=loop), tmp_path), finished[0])
    assert saved == [1, 2, 3, 4, 5, 6]


def test_full_disk_is_reported_and_the_last_checkpoint_resumes(finished, tmp_path):
    """A file size limit replaces the full disk: the same calls fail, with another errno."""
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG_FILE)
    train(T2I, workdir, stop_after=4)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train", f"--config={config}", f"--workdir={workdir}"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
            # The compilation cache is read but not written, which would fail too.
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000",
        },
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "step 6 could not be saved (File too large); the checkpoint of step 3 is intact" in last
    assert not any(noise in done.stderr for noise in ("Traceback", "Warning", "ERROR"))
    assert checkpoint.resolve_checkpoint(workdir).name == "3"
    equal(train(T2I, workdir), finished[0])
    assert {p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()} == {"3", "6"}
    assert rows(workdir) == rows(finished[1])
