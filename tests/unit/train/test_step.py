"""The train step: who is scored for what, what cannot matter, and which weights the average follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.config import Config
from modality_forcing.modalities import base
from modality_forcing.models.restore import graft
from modality_forcing.train.state import init_params, init_state
from modality_forcing.train.step import averages, compute_loss, drop_text, make_step
from modality_forcing.tree import flatten
from tests import tiny

CONFIG = tiny.forcing(weight_decay=0.0)
MODALITIES = base.build(CONFIG)
B = 8


def with_given(image: float, depth: float) -> Config:
    """The same run with other probabilities of being given clean."""
    m = CONFIG.modalities
    return replace(
        CONFIG,
        modalities={
            "image": replace(m["image"], given=image),
            "depth": replace(m["depth"], given=depth),
        },
    )


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, batch)


BATCH = on_device(tiny.batch(CONFIG, B))


def spied(batch=BATCH, config=CONFIG, step=0, answer=0.0, teacher=None):
    """What the network is shown of a batch, and the metrics of answering a constant."""
    seen = {}

    def model(x_t, t, text):
        seen.update(x_t=x_t, t=t, text=text)
        return {n: jnp.full(x.shape, answer) for n, x in x_t.items()}

    modalities = base.build(config)
    loss, sums = compute_loss(
        model, modalities, batch, jnp.int32(step), config, tiny.null_text(config), teacher
    )  # pyright: ignore[reportArgumentType]
    metrics = averages(sums)
    assert loss == metrics["loss"]
    return seen, metrics


@pytest.fixture(scope="module")
def graded():
    """(weights, batch) -> (metrics, gradient) of the real network, compiled once; and weights away from the start."""
    graph, params = tiny.network(CONFIG)

    def run(params, batch):
        of = lambda p: compute_loss(
            nnx.merge(graph, p), MODALITIES, batch, jnp.int32(5), CONFIG, tiny.null_text(CONFIG)
        )
        (_, sums), gradient = jax.value_and_grad(of, has_aux=True)(params)
        return averages(sums), gradient

    jitted = jax.jit(run)
    return lambda batch: jitted(params, batch)


ORDER = np.array([3, 0, 7, 1, 2, 6, 5, 4])


def test_levels_noise_and_text_follow_the_example_not_its_slot():
    seen, _ = spied()
    turned, _ = spied(tiny.take(BATCH, ORDER))
    for what in ("t", "x_t", "text"):
        jax.tree.map(np.testing.assert_array_equal, turned[what], tiny.take(seen[what], ORDER))
    others, _ = spied({**BATCH, "index": BATCH["index"].at[1:].add(100)})
    np.testing.assert_array_equal(others["x_t"]["depth"][0], seen["x_t"]["depth"][0])
    assert not np.array_equal(others["x_t"]["depth"][1], seen["x_t"]["depth"][1])


def test_the_order_of_the_batch_changes_neither_loss_nor_gradient(graded):
    metrics, gradient = graded(BATCH)
    turned_metrics, turned = graded(tiny.take(BATCH, ORDER))
    for name, value in metrics.items():
        assert float(turned_metrics[name]) == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), turned, gradient
    )


def test_examples_modalities_steps_and_seeds_draw_apart():
    empty = {
        **BATCH,
        "valid": jnp.zeros_like(BATCH["valid"]),
    }  # then depth is nothing but its noise
    eps = np.asarray(spied(empty)[0]["x_t"]["depth"])
    assert eps.mean() == pytest.approx(0, abs=4 / np.sqrt(eps.size)) and eps.std() == pytest.approx(
        1, abs=0.06
    )
    alike = lambda x, y: len(np.intersect1d(x, y)) > 0.01 * min(x.size, y.size)
    assert len(np.unique(eps)) > 0.99 * eps.size
    seen, _ = spied(empty, with_given(0.0, 1.0))
    t, (x0, _) = seen["t"]["image"][:, None, None], MODALITIES["image"].encode(BATCH)
    image = np.asarray((seen["x_t"]["image"] - (1 - t) * x0) / t).reshape(B, -1)[:, : eps[0].size]
    assert np.mean(np.abs(image - eps.reshape(B, -1)) < 1e-3) < 0.01
    for other in (spied(empty, step=1), spied(empty, replace(CONFIG, seed=9))):
        assert not alike(eps, np.asarray(other[0]["x_t"]["depth"]))
    seen, _ = spied()
    for name in MODALITIES:
        free = np.asarray(seen["t"][name])[np.asarray(seen["t"][name]) > 0]
        assert len(np.unique(free)) == len(free) > 1


def test_the_network_sees_the_flow_between_data_and_noise():
    seen, _ = spied()
    empty, _ = spied({**BATCH, "valid": jnp.zeros_like(BATCH["valid"])})
    x0, observed = MODALITIES["depth"].encode(BATCH)
    eps, t = empty["x_t"]["depth"], seen["t"]["depth"][:, None, None]
    np.testing.assert_allclose(
        seen["x_t"]["depth"], jnp.where(observed, (1 - t) * x0 + t * eps, eps), atol=1e-5
    )
    np.testing.assert_array_equal(seen["t"]["depth"], empty["t"]["depth"])


@pytest.mark.parametrize("fill", [np.nan, -3.0, 1e30])
def test_the_fill_of_unknown_pixels_changes_no_bit(graded, fill):
    filled = {**BATCH, "depth": jnp.where(BATCH["valid"], BATCH["depth"], fill)}
    jax.tree.map(np.testing.assert_array_equal, graded(filled), graded(BATCH))


def test_the_unit_of_depth_does_not_matter(graded):
    jax.tree.map(
        np.testing.assert_array_equal,
        graded({**BATCH, "depth": BATCH["depth"] * 1024}),
        graded(BATCH),
    )
    metrics, _ = graded({**BATCH, "depth": BATCH["depth"] * 1000})
    assert float(metrics["loss"]) == pytest.approx(float(graded(BATCH)[0]["loss"]), rel=1e-5)


def test_an_example_with_no_valid_pixel_adds_nothing_and_breaks_nothing(graded):
    valid = BATCH["valid"].at[2].set(False)
    batch = {**BATCH, "valid": valid, "depth": jnp.where(valid, BATCH["depth"], jnp.nan)}
    metrics, gradient = graded(batch)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((metrics, gradient)))
    nothing, gradient = graded(
        {**BATCH, "valid": jnp.zeros_like(valid), "depth": jnp.full_like(BATCH["depth"], jnp.nan)}
    )
    assert float(nothing["loss_depth"]) == 0.0 and float(nothing["loss_image"]) > 0.0
    assert float(nothing["loss"]) > 0.0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    for path, leaf in flatten(gradient).items():
        if path.startswith("head/depth/"):
            assert not np.any(leaf), path


def test_what_is_given_or_unknown_has_exactly_no_loss_and_no_gradient():
    """With either modality given in half of the examples: the gradient of the loss by every value of the answer."""
    config = with_given(0.5, 0.5)
    answers = {n: jnp.full((B, *m.shape), 0.3) for n, m in MODALITIES.items()}

    def loss(answers):
        seen = {}

        def model(x_t, t, text):
            seen.update(t)
            return answers

        return compute_loss(
            model, base.build(config), BATCH, jnp.int32(0), config, tiny.null_text(config)
        )[0], seen  # pyright: ignore[reportArgumentType]

    gradient, t = jax.grad(loss, has_aux=True)(answers)
    given = {n: np.asarray(t[n]) == 0 for n in MODALITIES}
    assert np.all(given["image"] ^ given["depth"]) and 0 < given["image"].sum() < B
    for name, modality in MODALITIES.items():
        scored = np.asarray(modality.encode(BATCH)[1]) & ~given[name][:, None, None]
        np.testing.assert_array_equal(np.asarray(gradient[name]) != 0, scored)


def test_a_modality_s_weight_is_its_share_of_the_loss():
    both = CONFIG.modalities
    heavy = replace(CONFIG, modalities={**both, "depth": replace(both["depth"], weight=3.0)})
    plain, told = spied(answer=0.5)[1], spied(config=heavy, answer=0.5)[1]
    alone = spied(
        config=replace(CONFIG, modalities={**both, "depth": replace(both["depth"], weight=0.0)}),
        answer=0.5,
    )[1]
    assert float(told["loss_depth"]) == float(plain["loss_depth"])
    depth = float(plain["loss"] - alone["loss"])
    assert float(told["loss"]) == pytest.approx(float(alone["loss"]) + 3 * depth, rel=1e-5)


def test_the_logged_loss_is_per_example_that_was_scored():
    """Half the depth maps missing and some given: the curve stays that of what is predicted."""
    seen, metrics = spied()
    x0, observed = MODALITIES["depth"].encode(BATCH)
    t = np.asarray(seen["t"]["depth"])
    squares = [
        np.mean(np.asarray(x0[i])[np.asarray(observed[i])] ** 2) / max(t[i], 0.05) ** 2
        for i in range(B)
        if t[i] > 0
    ]
    assert float(metrics["loss_depth"]) == pytest.approx(np.mean(squares), rel=1e-4)


def test_an_image_alone_is_a_run_too():
    config = tiny.t2i()
    seen, metrics = spied(on_device(tiny.batch(config, B)), config)
    assert set(seen["x_t"]) == set(seen["t"]) == {"image"} and set(metrics) == {
        "loss_image",
        "loss",
    }
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss_image"]))


def test_dropped_text_is_the_encoder_s_empty_caption():
    text = {"tokens": jnp.full((1000, 3), 7), "mask": jnp.ones((1000, 3), bool)}
    null = {"tokens": np.array([5, 0, 0]), "mask": np.array([True, False, False])}
    keys = jax.random.split(jax.random.key(0), 1000)
    out = drop_text(keys, text, null, 0.1)
    dropped = np.asarray(out["tokens"][:, 0] == 5)
    assert dropped.mean() == pytest.approx(0.1, abs=0.03)
    for name in text:
        np.testing.assert_array_equal(
            out[name][dropped], np.broadcast_to(null[name], (dropped.sum(), 3))
        )
        np.testing.assert_array_equal(out[name][~dropped], text[name][~dropped])
    assert not np.any(drop_text(keys, text, null, 1.0)["tokens"][:, 0] != 5)
    assert not np.any(drop_text(keys, text, null, 0.0)["tokens"] == 5)


# ---- Self-distillation


def test_distillation_weighs_the_velocity_s_error_by_the_depth_s_noise():
    config = replace(
        CONFIG, train=replace(CONFIG.train, distill=True, distill_high=2.0, distill_low=0.5)
    )
    shown = []

    def teacher(x_t, t, text):
        shown.append((x_t, t, text))
        return {"image": jnp.full(x_t["image"].shape, 0.7)}

    seen, metrics = spied(config=config, answer=0.2, teacher=teacher)
    ((x_t, t, text),) = shown
    assert set(x_t) == set(t) == {"image"}  # alone, on the same noisy image, with the same text
    np.testing.assert_array_equal(x_t["image"], seen["x_t"]["image"])
    np.testing.assert_array_equal(t["image"], seen["t"]["image"])
    jax.tree.map(np.testing.assert_array_equal, text, seen["text"])
    level, other = np.asarray(t["image"]), np.asarray(seen["t"]["depth"])
    weight = 2.0 * other + 0.5 * (1 - other)
    each = np.where(level > 0, weight * (0.5 / np.maximum(level, 0.05)) ** 2, 0.0)
    assert float(metrics["loss_distill"]) == pytest.approx(each.mean(), rel=1e-4)
    plain = spied(answer=0.2)[1]
    assert float(metrics["loss"] - plain["loss"]) == pytest.approx(each.mean(), rel=1e-3)


def test_distillation_starts_where_student_and_teacher_agree_up_to_the_depth_s_tokens():
    teacher_config = tiny.t2i()
    teacher_graph, teacher = tiny.network(teacher_config)
    student = graft(teacher, init_params(CONFIG, MODALITIES), ("depth",))
    config = replace(CONFIG, train=replace(CONFIG.train, distill=True))
    graph, _ = tiny.network(CONFIG)

    def run(params, frozen, silent):
        def model(x_t, t, text):
            out = nnx.merge(graph, params)(x_t, t, text)
            return (
                out | nnx.merge(graph, params)({"image": x_t["image"]}, {"image": t["image"]}, text)
                if silent
                else out
            )

        return compute_loss(
            model,
            MODALITIES,
            BATCH,
            jnp.int32(0),
            config,
            tiny.null_text(config),
            nnx.merge(teacher_graph, frozen),
        )[1]["loss_distill"][0]  # pyright: ignore[reportArgumentType]

    assert float(jax.jit(run, static_argnums=2)(student, teacher, True)) < 1e-10
    heard, (push, taught) = jax.jit(jax.value_and_grad(run, argnums=(0, 1)), static_argnums=2)(
        student, teacher, False
    )
    assert 1e-6 < float(heard) < np.inf
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(push))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(taught))  # the teacher is frozen


# ---- The whole step


@pytest.fixture(scope="module")
def step():
    return make_step(CONFIG, MODALITIES, tiny.network(CONFIG)[0], tiny.null_text(CONFIG))


@pytest.fixture(scope="module")
def stepped(step):
    """Two updates of a state: (before, after one, after two) on the host, and both metrics."""
    state = init_state(CONFIG, tiny.network(CONFIG)[1])
    states, metrics = [jax.device_get(state)], []
    for i in range(2):
        state, told = step(state, on_device(tiny.batch(CONFIG, 4, first=4 * i)))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(told))
    return states, metrics


def test_a_step_counts_itself_and_moves_every_weight(stepped):
    states, metrics = stepped
    assert [int(state.step) for state in states] == [0, 1, 2]
    assert set(metrics[0]) == {"loss", "loss_image", "loss_depth", "grad_norm"}
    moved = jax.tree.map(lambda a, b: np.any(a != b), states[2].params, states[0].params)
    assert all(flatten(moved).values()), [path for path, any_ in flatten(moved).items() if not any_]


def test_the_average_follows_the_updated_weights(stepped):
    (before, one, two), _ = stepped
    for old, new, decay in (
        (before, one, 1 / 10),
        (one, two, 2 / 11),
    ):  # short at first, CONFIG's 0.9 later
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, old.ema, new.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new.ema, expected
        )


def test_the_average_s_decay_ends_at_the_config_s(step, stepped):
    state = jax.tree.map(jnp.asarray, stepped[0][2])._replace(step=jnp.int32(100_000))
    before = jax.device_get(state.ema)
    after = jax.device_get(step(state, on_device(tiny.batch(CONFIG)))[0])
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before, after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.ema, expected
    )


def test_training_learns_a_batch_by_heart():
    config = replace(
        tiny.t2i(steps=100, learning_rate=1e-2, t_min=1.0), text=replace(tiny.TEXT, drop=0.0)
    )
    modalities = base.build(config)
    graph, _ = tiny.network(config)
    step = make_step(config, modalities, graph, tiny.null_text(config))
    state, batch, losses = (
        init_state(config, init_params(config, modalities)),
        on_device(tiny.batch(config)),
        [],
    )
    for _ in range(100):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
