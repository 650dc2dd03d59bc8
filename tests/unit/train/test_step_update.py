"""The whole train step: every weight is updated, the EMA follows, one batch is learned."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.modalities import base
from modality_forcing.train.initial_weights import initial_params
from modality_forcing.train.state import abstract_model, init_params, init_state
from modality_forcing.train.step import make_step
from modality_forcing.tree import flatten
from tests import tiny

CONFIG = tiny.forcing(weight_decay=0.0)
MODALITIES = base.build(CONFIG)


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def step():
    return make_step(CONFIG, MODALITIES, tiny.network(CONFIG)[0], tiny.null_text(CONFIG))


@pytest.fixture(scope="module")
def stepped(step):
    """Two updates of a state: (before, after one, after two) on the host, and both metrics."""
    state = init_state(CONFIG, tiny.network(CONFIG)[1])
    states, metrics = [jax.device_get(state)], []
    for i in range(2):
        state, of_step = step(state, on_device(tiny.batch(CONFIG, 4, first=4 * i)))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(of_step))
    return states, metrics


def test_step_increments_its_count_and_updates_every_weight(stepped):
    states, metrics = stepped
    assert [int(state.step) for state in states] == [0, 1, 2]
    losses = {"loss", "loss_image", "loss_depth", "loss_image_by_level", "loss_depth_by_level"}
    groups = ("", "/embed", "/blocks", "/head_image", "/head_depth")
    norms = {f"{kind}_norm{group}" for kind in ("grad", "update") for group in groups}
    assert set(metrics[0]) == {*losses, *norms, "learning_rate"}
    moved = jax.tree.map(lambda a, b: np.any(a != b), states[2].params, states[0].params)
    assert all(flatten(moved).values()), [path for path, any_ in flatten(moved).items() if not any_]


def test_ema_follows_the_updated_weights(stepped):
    (before, one, two), _ = stepped
    for old, new, decay in (
        (before, one, 1 / 10),
        (one, two, 2 / 11),
    ):  # short at first, CONFIG's 0.9 later
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, old.ema, new.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new.ema, expected
        )


def test_ema_decay_converges_to_the_config_value(step, stepped):
    state = jax.tree.map(jnp.asarray, stepped[0][2])._replace(step=jnp.int32(100_000))
    before = jax.device_get(state.ema)
    after = jax.device_get(step(state, on_device(tiny.batch(CONFIG)))[0])
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before, after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.ema, expected
    )


def test_training_overfits_one_batch():
    config = replace(
        tiny.t2i(steps=100, learning_rate=1e-2, t_min=1.0),
        text=replace(tiny.TEXT, text_dropout=0.0),
    )
    modalities = base.build(config)
    graph, _ = tiny.network(config)
    step = make_step(config, modalities, graph, tiny.null_text(config))
    state = init_state(config, init_params(config, modalities))
    batch = on_device(tiny.batch(config))
    losses = []
    for _ in range(100):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_three_modalities_train_from_a_network_of_one(t2i_run: Path):
    config = tiny.normals(init_from=str(t2i_run), weight_decay=0.0)
    modalities = base.build(config)
    graph, shapes = abstract_model(config, modalities)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(partial(init_state, config), shapes)
    params = initial_params(config, abstract, partial(jax.tree.map, lambda _: device))
    batch = tiny.batch(config)
    batch["normals"][1] = 0  # an image without normals
    state = init_state(config, params)
    before = jax.device_get(state.params)
    step = make_step(config, modalities, graph, tiny.null_text(config))
    for _ in range(5):  # weights that are 0 at first let gradients through one after another
        state, metrics = step(state, on_device(batch))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
        assert metrics["loss_normals"] > 0 and metrics["grad_norm/head_normals"] > 0
    moved = jax.tree.map(lambda a, b: np.any(a != b), jax.device_get(state.params), before)
    assert all(flatten(moved).values()), [path for path, any_ in flatten(moved).items() if not any_]
