"""The optimiser: its schedules, its clipping, and weight decay on matrices alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.config import TrainConfig
from modality_forcing.models.surgery import flatten
from modality_forcing.train.optim import decayed, optimiser, schedule
from tests import tiny

C = TrainConfig(steps=100, learning_rate=0.1, warmup=0.1, decay=0.2)
SHAPES = tiny.network(tiny.forcing())[1]


def rates(c: TrainConfig) -> np.ndarray:
    return np.array([float(schedule(c)(jnp.int32(k))) for k in range(c.steps)])


def test_wsd_warms_up_stays_and_cools_down():
    told = rates(C)
    np.testing.assert_allclose(told[:10], 0.1 * (np.arange(10) + 1) / 10, rtol=1e-5)
    np.testing.assert_allclose(told[10:81], 0.1, rtol=1e-5)
    share = np.arange(20) / 20
    np.testing.assert_allclose(told[80:], 0.1 * (1 - 0.95 * np.sqrt(share)), rtol=1e-5)
    assert float(schedule(C)(jnp.int32(1000))) == pytest.approx(0.005)


def test_cosine_warms_up_and_falls_to_a_tenth():
    told = rates(TrainConfig(steps=100, learning_rate=0.1, warmup=0.1, schedule="cosine"))
    assert np.all(np.diff(told[:11]) > 0) and np.all(np.diff(told[10:]) < 0)
    assert told.max() == pytest.approx(0.1) and told[-1] == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_have_a_schedule(kind, steps):
    assert np.all(np.isfinite(rates(TrainConfig(steps=steps, schedule=kind, warmup=1.0, decay=1.0))))


def test_decay_is_on_matrices_only():
    told = {path for path, on in flatten(decayed(SHAPES)).items() if on}
    assert told == {path for path in flatten(SHAPES) if path.split("/")[-1] in tiny.MATRICES}
    vectors = set(flatten(SHAPES)) - told
    # A vector of each of two layers has the rank of a matrix.
    assert {"trunk/layers/q_scale", "trunk/layers/offset", "head/depth/blocks/layers/k_scale"} <= vectors
    assert {"text/padding", "mixing/image_from_depth"} <= vectors


def test_without_a_gradient_only_what_decays_moves():
    c = TrainConfig(steps=100, learning_rate=0.1, warmup=0.0, weight_decay=0.5)
    optimise = optimiser(c)
    nothing = jax.tree.map(np.zeros_like, SHAPES)
    updates = jax.jit(lambda g, p: optimise.update(g, optimise.init(p), p)[0])(nothing, SHAPES)
    on, update, weights = flatten(decayed(SHAPES)), flatten(updates), flatten(SHAPES)
    for path, u in update.items():
        np.testing.assert_allclose(u, -0.1 * 0.5 * weights[path] if on[path] else 0 * weights[path], rtol=1e-5)


def test_the_gradient_is_clipped_by_its_global_norm():
    c = TrainConfig(steps=100, warmup=0.0, weight_decay=0.0, clip=1.0)
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    grads = {"a": jnp.full((2, 2), 1e4), "b": jnp.full(3, -1e4)}

    def moments(g):
        optimise = optimiser(c)
        return [x for x in jax.tree.leaves(optimise.update(g, optimise.init(params), params)[1]) if x.ndim]

    unit = jax.tree.map(lambda g: g / (1e4 * np.sqrt(7)), grads)
    small = jax.tree.map(lambda g: 0.3 * g, unit)
    for a, b in zip(moments(grads), moments(unit), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    assert max(float(jnp.abs(m).max()) for m in moments(small)) < 0.31 * max(float(jnp.abs(m).max()) for m in moments(unit))


def test_the_betas_are_the_config_s():
    params, grad = {"w": jnp.zeros((1, 1))}, {"w": jnp.full((1, 1), 0.5)}
    optimise = optimiser(TrainConfig(b1=0.7, b2=0.8))
    state = optimise.update(grad, optimise.init(params), params)[1]
    moments = sorted(float(m[0, 0]) for m in jax.tree.leaves(state) if m.ndim == 2)
    assert moments == pytest.approx([0.2 * 0.25, 0.3 * 0.5])
