"""The metrics of every step: what is left out, what is raised, which data are named."""

from __future__ import annotations

import math

import pytest

from modality_forcing.config import TrainConfig
from modality_forcing.train import spikes
from modality_forcing.train.spike_guard import SpikeGuard
from modality_forcing.train.spikes import Spike

GOOD, NAN = {"loss": 1.0, "spike": 0.0}, {"loss": math.nan, "spike": 1.0}


def guard(workdir, action: str, tries: int = 3) -> SpikeGuard:
    c = TrainConfig(on_spike=action, spike_tries=tries)
    made = SpikeGuard(c, workdir, records=lambda number: {"nyuv2": [10 * number, 10 * number + 1]})
    made.begin(step=100, batches=102)
    return made


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_spike_is_raised_with_its_step_and_data(tmp_path, action):
    watching = guard(tmp_path, action)
    for step, metrics in enumerate((GOOD, NAN, GOOD), 101):
        watching.add(step, metrics)
    with pytest.raises(Spike, match="loss not finite") as raised:
        watching.check()
    assert raised.value.step == 102
    named = "loss not finite at step 102, batch 103 (records 1030, 1031 of nyuv2)"
    assert watching.describe(raised.value) == named


def test_last_steps_are_looked_at_later(tmp_path):
    watching = guard(tmp_path, "stop")
    watching.add(101, GOOD)
    watching.add(102, NAN)
    assert watching.check(skip_last=1) == []
    with pytest.raises(Spike):
        watching.check()


def test_metric_that_is_not_finite_without_being_a_spike_is_raised(tmp_path):
    watching = guard(tmp_path, "skip")
    watching.add(101, GOOD | {"loss_depth": math.inf})
    with pytest.raises(Spike, match="loss_depth not finite"):
        watching.check()


def test_updates_left_out_are_returned_listed_and_bounded_in_a_row(tmp_path, capsys):
    watching = guard(tmp_path, "skip", tries=2)
    for step, metrics in enumerate((NAN, NAN, GOOD, NAN, NAN), 101):
        watching.add(step, metrics)
    assert watching.check() == [NAN] * 4
    assert [spike.step for spike in spikes.read(tmp_path)] == [101, 102, 104, 105]
    assert "step 101, batch 102 (records 1020, 1021 of nyuv2): skip" in capsys.readouterr().err
    watching.add(106, NAN)
    with pytest.raises(FloatingPointError, match="3 updates in a row were left out, the last for"):
        watching.check()


def test_same_spike_after_an_interruption_is_one_try(tmp_path):
    first = guard(tmp_path, "rollback", tries=1)
    spike = Spike(102, {"loss": math.nan})
    first.note(spike, "rollback")
    assert first.why_stop(spike, saved=100) is None
    assert "no checkpoint to go back to" in str(first.why_stop(spike, saved=None))
    again, other = guard(tmp_path, "rollback", tries=1), Spike(104, {"loss": math.nan})
    assert again.why_stop(spike, saved=100) is None
    assert "after 1 rollbacks" in str(again.why_stop(other, saved=100))
    assert guard(tmp_path, "stop").why_stop(spike, saved=100) == ""


def test_updates_left_out_before_are_no_rollbacks(tmp_path):
    spike = Spike(102, {"loss": math.nan})
    for action in ("skip", "stop", "rollback"):  # the same spike, each time with another choice
        guard(tmp_path, action).note(spike, action)
    assert [listed.action for listed in spikes.read(tmp_path)] == ["skip", "stop", "rollback"]
    for step in range(110, 115):
        guard(tmp_path, "skip").note(Spike(step, {"loss": math.nan}), "skip")
    again = guard(tmp_path, "rollback", tries=2)
    assert again.why_stop(Spike(120, {"loss": math.nan}), saved=100) is None
    assert again.why_stop(Spike(121, {"loss": math.nan}), saved=100) is not None
