"""The order of the loop, with stubs that note their calls; tests/e2e/test_resume.py trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing import locks, signals
from modality_forcing.config import Config
from modality_forcing.data.prefetch import PrefetchToDevice
from modality_forcing.errors import UserError
from modality_forcing.train import loop
from modality_forcing.train.evaluation import EvalResult
from modality_forcing.train.init import Run
from modality_forcing.train.logger import TrainLogger
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState
from modality_forcing.train.stopping import Stopping
from tests import tiny

update = jax.jit(lambda step: (step + 1, {"w": 10 * (step + 1)}, {"loss": jnp.float32(step)}))


def start() -> TrainState:
    """A state without weights, but for an average that is 10 times the number of updates."""
    return TrainState(jnp.int32(0), {}, (), {"w": jnp.int32(0)})


class Numbers:
    """Batches that are their own numbers."""

    def __init__(self) -> None:
        self.number = 0

    def __next__(self) -> int:
        self.number += 1
        return self.number - 1

    def pop_stats(self) -> dict[str, float]:
        return {}

    def records(self, number: int) -> dict[str, list[int]]:
        return {"": [number]}

    def get_state(self) -> dict[str, int]:
        return {"batches": self.number}

    def set_state(self, state: Mapping[str, int]) -> None:
        self.number = state["batches"]


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """Replaces what a run is made of by stubs; returns what the loop did, in order."""
    made: list[str] = []

    class Batches(PrefetchToDevice):
        def __next__(self) -> int:
            made.append("next")
            return super().__next__()

    class Saves(Checkpoints):
        def __init__(self) -> None:
            pass

        def save(self, state: TrainState, config: Config, metadata: Mapping[str, Any]) -> None:
            made.append(f"save {state.step} after {metadata['data_state']['batches']}")

        def check(self) -> None:
            pass

        def wait(self) -> None:
            made.append("wait")

        def close(self) -> None:
            made.append("close")

    class Logger(TrainLogger):
        def log(self, step: int, skip_last: int = 0) -> None:
            made.append(f"log {step}")
            super().log(step, skip_last)

    def evaluate(average: Mapping[str, jax.Array]) -> EvalResult:
        made.append(f"evaluate {average['w']}")
        return EvalResult({}, np.zeros((2, 2, 3), np.uint8))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        made.append(f"step {batch}")
        number, average, metrics = update(state.step)
        return state._replace(step=number, ema=average), metrics

    def init_run(*_: Any) -> tuple[Run, TrainState]:
        batches = Batches(Numbers(), lambda number: number)
        return Run(step, 0, batches, Saves(), lambda: (start(), {}), {}, evaluate), start()

    monkeypatch.setattr(loop, "init_run", init_run)
    monkeypatch.setattr(loop, "TrainLogger", Logger)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    return made


def every(evaluation: int = 0, **train: Any) -> Config:
    config = tiny.t2i(**{"steps": 3, "save_every": 9, "log_every": 9, **train})
    return replace(config, eval=replace(config.eval, every=evaluation))


def test_evaluation_row_and_save_are_before_the_next_batch(tmp_path, events):
    state = loop.train(every(2, save_every=2, log_every=2), tmp_path)
    assert int(state.step) == 3
    assert events == [
        *("evaluate 0", "next", "step 0"),
        *("next", "step 1"),
        *("evaluate 20", "log 2", "save 2 after 2", "next", "step 2"),
        *("log 3", "evaluate 30", "save 3 after 3", "wait", "close"),
    ]
    assert [row["loss"] for row in read_metrics(tmp_path) if "loss" in row] == [0.5, 2.0]


def test_row_without_a_save_is_written_one_step_late(tmp_path, events):
    """Of the same steps: the device does not wait for it."""
    loop.train(every(log_every=2), tmp_path)
    assert events[4:8] == ["next", "step 2", "log 2", "log 3"]
    assert [row["loss"] for row in read_metrics(tmp_path) if "loss" in row] == [0.5, 2.0]


def test_steps_to_keep_are_saved_too(tmp_path, events):
    loop.train(every(keep_at_steps=(1,)), tmp_path)
    assert [event for event in events if "save" in event] == ["save 1 after 1", "save 3 after 3"]


@pytest.mark.parametrize(
    ("stop_at", "expected"),
    [
        ("step 1", ["step 1", "save 2 after 2", "wait", "close"]),  # not evaluated
        ("evaluate 20", ["step 1", "evaluate 20", "save 2 after 2", "wait", "close"]),
    ],
)
def test_stopped_run_saves_and_takes_no_other_batch(
    tmp_path, events, monkeypatch, stop_at, expected
):
    class Stop(Stopping):
        def reached(self) -> bool:
            return stop_at in events

    monkeypatch.setattr(loop, "Stopping", Stop)
    with pytest.raises(signals.StopRequest, match="at step 2, which is saved"):
        loop.train(every(2), tmp_path)
    assert events[-len(expected) :] == expected


def test_run_stopped_before_its_first_step_saves_nothing(tmp_path, events, monkeypatch):
    monkeypatch.setattr(Stopping, "reached", lambda _: True)
    with pytest.raises(signals.StopRequest, match="before the first step"):
        loop.train(every(1), tmp_path)
    assert events == ["wait", "close"]


def fail() -> None:
    raise RuntimeError("a bug")


def copy() -> None:
    update(np.int32(1))


@pytest.mark.parametrize(("wrong", "message"), [(fail, "a bug"), (copy, "Disallowed host-to-dev")])
def test_step_that_fails_or_copies_from_the_host_closes_all(
    tmp_path, events, monkeypatch, wrong, message
):
    init_run = loop.init_run
    batches: list[PrefetchToDevice] = []

    def broken(*of: Any) -> tuple[Run, TrainState]:
        run, state = init_run(*of)
        batches.append(run.batches)
        assert (tmp_path / locks.LOCK).exists()
        return replace(run, step=lambda *_: wrong()), state

    monkeypatch.setattr(loop, "init_run", broken)
    with pytest.raises(Exception, match=message):
        loop.train(every(), tmp_path)
    assert events == ["next", "close"]
    assert batches[0]._thread is None and not (tmp_path / locks.LOCK).exists()


def test_workdir_of_another_run_is_not_touched(tmp_path, events):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"without a config\.json"):
        loop.train(every(), tmp_path)
    assert events == [] and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
