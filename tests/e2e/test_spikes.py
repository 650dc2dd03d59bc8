"""A batch whose loss is not finite: the run stops, leaves it out, or goes back and around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.config import Config
from modality_forcing.train import checkpoint, spikes, step
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from tests import tiny

T2I = tiny.t2i(steps=6, save_every=2, log_every=2)
BAD = 3  # the number of the batch, the fourth


def on_spike(action: str, tries: int = 3) -> Config:
    return replace(T2I, train=replace(T2I.train, on_spike=action, spike_tries=tries))


@pytest.fixture(params=[False], ids=["one bad batch"])
def bad_data(request, monkeypatch):
    """Makes the loss of a batch not a number; or of all from that one on."""
    compute = step.compute_loss

    def poisoned(model, modalities, batch, *arguments, **fixed):
        total, sums = compute(model, modalities, batch, *arguments, **fixed)
        number = batch["index"][0] // T2I.train.batch
        bad = number >= BAD if request.param else number == BAD
        total = jnp.where(bad, jnp.nan, total)
        return total, {**sums, "loss": (total, jnp.ones(()))}

    monkeypatch.setattr(step, "compute_loss", poisoned)


def finite(state) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def data_state(workdir: Path) -> dict[str, int]:
    (metadata,) = [checkpoint._read_meta(checkpoint.resolve_checkpoint(workdir))]
    return metadata["data_state"]  # pyright: ignore


@pytest.mark.usefixtures("bad_data")
def test_run_stops_and_names_the_data(tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step 4, batch 3 \(records \d+, "):
        train(T2I, tmp_path)
    assert checkpoint.resolve_checkpoint(tmp_path).name == "2"
    (listed,) = spikes.read(tmp_path)
    assert (listed.step, listed.batch, listed.action) == (4, BAD, "stop")
    assert listed.values["loss"] == "nan" and len(listed.records[""]) == T2I.train.batch


@pytest.mark.usefixtures("bad_data")
def test_update_is_left_out_and_a_resumed_run_is_equal(tmp_path, capsys):
    config = on_spike("skip")
    before = train(config, tmp_path / "a", stop_after=3)
    after = train(config, tmp_path / "b", stop_after=4)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert int(after.step) == 4
    whole = train(config, tmp_path / "whole")
    assert finite(whole) and "step 4, batch 3 (records " in capsys.readouterr().err
    assert [listed.step for listed in spikes.read(tmp_path / "whole")] == [4]
    jax.tree.map(np.testing.assert_array_equal, train(config, tmp_path / "b"), whole)
    for name in ("whole", "b"):
        rows = read_metrics(tmp_path / name)
        assert all(np.isfinite(value) for row in rows for value in row.values())
        assert [row["loss"] for row in rows if "loss" in row] == [
            row["loss"] for row in read_metrics(tmp_path / "whole") if "loss" in row
        ]


@pytest.mark.usefixtures("bad_data")
def test_run_goes_back_and_around_the_batch(tmp_path):
    config = on_spike("rollback")
    whole = train(config, tmp_path / "whole")
    assert finite(whole) and int(whole.step) == 6
    # Steps 3 and 4 were done with batches 2 and 3, then, again, with 4 and 5.
    assert data_state(tmp_path / "whole") == {"batches": 8}
    assert [row["step"] for row in read_metrics(tmp_path / "whole") if "loss" in row] == [2, 4, 6]
    assert [listed.batch for listed in spikes.read(tmp_path / "whole")] == [BAD]
    train(config, tmp_path / "broken", stop_after=5)
    jax.tree.map(np.testing.assert_array_equal, train(config, tmp_path / "broken"), whole)


@pytest.mark.parametrize("bad_data", [True], indirect=True, ids=["all that follow"])
@pytest.mark.usefixtures("bad_data")
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_tries_are_bounded(tmp_path, action):
    with pytest.raises(FloatingPointError, match=r"not finite at step|left out, the last for"):
        train(on_spike(action, tries=2), tmp_path)
    assert len(spikes.read(tmp_path)) == 3
    assert finite(train(on_spike("skip"), tmp_path / "other", stop_after=3))
