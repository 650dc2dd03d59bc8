"""Runs that a signal, a clock or a full disk interrupts resume to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import jax
import pytest

from modality_forcing import locks, signals
from modality_forcing.data.prefetch import PrefetchToDevice
from modality_forcing.errors import UserError
from modality_forcing.train import checkpoint
from modality_forcing.train.loop import train
from modality_forcing.train.saving import Checkpoints
from tests.resumed import T2I, equal, extras, rows

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
