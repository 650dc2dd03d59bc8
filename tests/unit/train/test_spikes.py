"""Spikes: found from the losses before them, left out to the bit, listed once."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.train import spikes
from modality_forcing.train.spikes import SpikeRecord

PARAMS = {"w": jnp.arange(4.0)}
SKIP = TrainConfig(on_spike="skip", spike_deviations=6.0)


def run(c: TrainConfig, losses, norms=None):
    """The weights, the state and what was found, after a step for each loss."""
    optimizer = spikes.watch(optax.adam(0.1), c)
    params, state, found = PARAMS, optimizer.init(PARAMS), []

    @jax.jit
    def step(params, state, i, loss, norm):
        grads = {"w": jnp.sin(i + params["w"]) * loss}
        found = spikes.is_spike(state, loss, norm, c.spike_deviations)
        updates, state = optimizer.update(grads, state, params, loss=loss, grad_norm=norm)
        return optax.apply_updates(params, updates), state, found

    for i, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[i]
        params, state, spike = step(params, state, float(i), jnp.float32(loss), jnp.float32(norm))
        found.append(bool(spike))
    return params, state, found


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("deviations", [0.0, 6.0])
def test_update_that_is_not_finite_is_left_out_to_the_bit(bad, deviations):
    c = replace(SKIP, spike_deviations=deviations)
    before, state_before, _ = run(c, [1.0, 0.9])
    after, state_after, found = run(c, [1.0, 0.9, bad])
    jax.tree.map(np.testing.assert_array_equal, after, before)
    jax.tree.map(np.testing.assert_array_equal, state_after, state_before)
    assert found == [False, False, True]
    assert run(c, [1.0, 0.9], norms=[1.0, bad])[2] == [False, True]
    # A run may change to it: without deviations the state is the optimizer's own.
    alone = optax.adam(0.1).init(PARAMS)
    assert (jax.tree.structure(state_after) == jax.tree.structure(alone)) == (not deviations)


def test_good_updates_are_those_of_the_optimizer_alone():
    optimizer = optax.adam(0.1)
    params, state = PARAMS, optimizer.init(PARAMS)
    step = jax.jit(lambda p, s, g: optimizer.update(g, s, p))
    for i, loss in enumerate([1.0, 0.9, 0.8]):
        updates, state = step(params, state, {"w": jnp.sin(float(i) + params["w"]) * loss})
        params = optax.apply_updates(params, updates)
    ours, tracked, _ = run(SKIP, [1.0, 0.9, 0.8])
    np.testing.assert_allclose(ours["w"], params["w"], rtol=1e-6)
    assert int(tracked.count) == 3
    np.testing.assert_allclose(tracked.mean, np.mean([1.0, 0.9, 0.8]), rtol=1e-6)
    np.testing.assert_allclose(tracked.variance, np.var([1.0, 0.9, 0.8]), rtol=1e-5)


def test_loss_far_above_the_running_mean_is_a_spike_once_the_mean_is_known():
    noise = np.random.default_rng(0).normal(1.0, 0.1, 80)
    early = noise.copy()
    early[10] = 3.0
    assert not any(run(SKIP, early)[2][: spikes._FIRST])
    noise[70:72] = 3.0
    found = run(SKIP, noise)[2]
    assert [i for i, spike in enumerate(found) if spike] == [70, 71]


def test_rollback_watches_and_leaves_the_update_in():
    c = replace(SKIP, on_spike="rollback")
    assert spikes.watches(c) and not spikes.watches(TrainConfig())
    params, _, found = run(c, [1.0, math.nan])
    assert found == [False, True] and not np.isfinite(params["w"]).all()


def test_spike_is_listed_once(tmp_path):
    one = SpikeRecord(7, "skip", 6, {"loss": "nan", "grad_norm": 2.0}, {"nyuv2": [5, 1]})
    two = one._replace(step=9, batch=8)
    for spike in (one, two, one):
        spikes.append(tmp_path, spike)
    assert spikes.read(tmp_path) == [one, two]
    with (tmp_path / spikes.FILE).open("a") as file:
        file.write('{"step": 1')  # cut short by a kill
    assert spikes.read(tmp_path) == [one, two]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "5",
        '{"step": 1}',
        '{"step": 3, "action": "stop", "batch": [1], "values": 3, "records": {}}',
        '{"step": true, "action": "stop", "batch": 1, "values": {}, "records": {}}',
    ],
)
def test_line_that_is_no_spike_is_named(tmp_path, line):
    spikes.append(tmp_path, SpikeRecord(7, "skip", 6, {}, {}))
    good = (tmp_path / spikes.FILE).read_text()
    (tmp_path / spikes.FILE).write_text(f"{good}{line}\n{good}")
    message = r"spikes\.jsonl, line 2: is not a spike .*remove the line"
    with pytest.raises(UserError, match=message) as caught:
        spikes.read(tmp_path)
    assert "__new__" not in str(caught.value)
