"""The train step: loss masks, invariances, self-distillation, EMA."""

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
from modality_forcing.models.restore import merge_params
from modality_forcing.train.state import init_params
from modality_forcing.train.step import compute_loss, text_dropout
from modality_forcing.train.step_metrics import normalize_metrics
from modality_forcing.tree import flatten
from tests import tiny

CONFIG = tiny.forcing(weight_decay=0.0)
MODALITIES = base.build(CONFIG)
B = 8
FIXED = {"config": CONFIG, "null_text": tiny.null_text(CONFIG)}


def with_given(image: float, depth: float) -> Config:
    """The same run with other probabilities of being given clean."""
    m = CONFIG.modalities
    return replace(
        CONFIG,
        modalities={
            "image": replace(m["image"], cond_prob=image),
            "depth": replace(m["depth"], cond_prob=depth),
        },
    )


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, batch)


BATCH = on_device(tiny.batch(CONFIG, B))


def capture(batch=BATCH, config=CONFIG, step=0, answer=0.0, teacher=None):
    """The model's inputs for a batch, and the metrics when its output is a constant."""
    seen = {}

    def model(x_t, t, text):
        seen.update(x_t=x_t, t=t, text=text)
        return {n: jnp.full(x.shape, answer) for n, x in x_t.items()}

    modalities = base.build(config)
    fixed = {"config": config, "null_text": tiny.null_text(config), "teacher": teacher}
    loss, sums = compute_loss(model, modalities, batch, jnp.int32(step), **fixed)
    metrics = normalize_metrics(sums)
    assert loss == metrics["loss"]
    return seen, metrics


@pytest.fixture(scope="module")
def graded():
    """batch -> (metrics, gradient) of the real network, compiled once."""
    graph, params = tiny.network(CONFIG)

    def run(params, batch):
        def loss(p):
            return compute_loss(nnx.merge(graph, p), MODALITIES, batch, jnp.int32(5), **FIXED)

        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return normalize_metrics(sums), gradient

    jitted = jax.jit(run)
    return lambda batch: jitted(params, batch)


ORDER = np.array([3, 0, 7, 1, 2, 6, 5, 4])


def test_random_numbers_depend_on_the_example_index_not_its_position():
    seen, _ = capture()
    turned, _ = capture(tiny.take(BATCH, ORDER))
    for what in ("t", "x_t", "text"):
        jax.tree.map(np.testing.assert_array_equal, turned[what], tiny.take(seen[what], ORDER))
    others, _ = capture({**BATCH, "index": BATCH["index"].at[1:].add(100)})
    np.testing.assert_array_equal(others["x_t"]["depth"][0], seen["x_t"]["depth"][0])
    assert not np.array_equal(others["x_t"]["depth"][1], seen["x_t"]["depth"][1])


def test_loss_and_gradient_do_not_depend_on_batch_order(graded):
    metrics, gradient = graded(BATCH)
    turned_metrics, turned = graded(tiny.take(BATCH, ORDER))
    for name, value in metrics.items():
        np.testing.assert_allclose(turned_metrics[name], value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), turned, gradient
    )


def test_noise_differs_between_examples_modalities_steps_and_seeds():
    # Then depth is nothing but its noise.
    empty = {**BATCH, "valid": jnp.zeros_like(BATCH["valid"])}
    eps = np.asarray(capture(empty)[0]["x_t"]["depth"])
    assert eps.mean() == pytest.approx(0, abs=4 / np.sqrt(eps.size)) and eps.std() == pytest.approx(
        1, abs=0.06
    )

    def alike(x, y):
        return len(np.intersect1d(x, y)) > 0.01 * min(x.size, y.size)

    assert len(np.unique(eps)) > 0.99 * eps.size
    seen, _ = capture(empty, with_given(0.0, 1.0))
    t, (x0, _) = seen["t"]["image"][:, None, None], MODALITIES["image"].to_tokens(BATCH)
    image = np.asarray((seen["x_t"]["image"] - (1 - t) * x0) / t).reshape(B, -1)[:, : eps[0].size]
    assert np.mean(np.abs(image - eps.reshape(B, -1)) < 1e-3) < 0.01
    for other in (capture(empty, step=1), capture(empty, replace(CONFIG, seed=9))):
        assert not alike(eps, np.asarray(other[0]["x_t"]["depth"]))
    seen, _ = capture()
    for name in MODALITIES:
        free = np.asarray(seen["t"][name])[np.asarray(seen["t"][name]) > 0]
        assert len(np.unique(free)) == len(free) > 1


def test_model_input_is_the_interpolation_of_data_and_noise():
    seen, _ = capture()
    empty, _ = capture({**BATCH, "valid": jnp.zeros_like(BATCH["valid"])})
    x0, observed = MODALITIES["depth"].to_tokens(BATCH)
    eps, t = empty["x_t"]["depth"], seen["t"]["depth"][:, None, None]
    np.testing.assert_allclose(
        seen["x_t"]["depth"], jnp.where(observed, (1 - t) * x0 + t * eps, eps), atol=1e-5
    )
    np.testing.assert_array_equal(seen["t"]["depth"], empty["t"]["depth"])


@pytest.mark.parametrize("fill", [np.nan, -3.0, 1e30])
def test_values_of_invalid_pixels_change_no_bit(graded, fill):
    filled = {**BATCH, "depth": jnp.where(BATCH["valid"], BATCH["depth"], fill)}
    jax.tree.map(np.testing.assert_array_equal, graded(filled), graded(BATCH))


def test_loss_does_not_depend_on_the_unit_of_depth(graded):
    jax.tree.map(
        np.testing.assert_array_equal,
        graded({**BATCH, "depth": BATCH["depth"] * 1024}),
        graded(BATCH),
    )
    metrics, _ = graded({**BATCH, "depth": BATCH["depth"] * 1000})
    assert float(metrics["loss"]) == pytest.approx(float(graded(BATCH)[0]["loss"]), rel=1e-5)


def test_example_without_valid_pixels_has_zero_loss_and_finite_gradient(graded):
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


def test_condition_and_invalid_tokens_have_exactly_zero_gradient():
    """The gradient by every output, with each modality given in half of the examples."""
    config = with_given(0.5, 0.5)
    answers = {n: jnp.full((B, *m.shape), 0.3) for n, m in MODALITIES.items()}

    def loss(answers):
        seen = {}

        def model(x_t, t, text):
            seen.update(t)
            return answers

        fixed = {**FIXED, "config": config}
        return compute_loss(model, base.build(config), BATCH, jnp.int32(0), **fixed)[0], seen

    gradient, t = jax.grad(loss, has_aux=True)(answers)
    given = {n: np.asarray(t[n]) == 0 for n in MODALITIES}
    assert np.all(given["image"] ^ given["depth"]) and 0 < given["image"].sum() < B
    for name, modality in MODALITIES.items():
        scored = np.asarray(modality.to_tokens(BATCH)[1]) & ~given[name][:, None, None]
        np.testing.assert_array_equal(np.asarray(gradient[name]) != 0, scored)


def test_modality_weight_scales_its_loss():
    both = CONFIG.modalities
    heavy = replace(CONFIG, modalities={**both, "depth": replace(both["depth"], loss_weight=3.0)})
    plain, weighted = capture(answer=0.5)[1], capture(config=heavy, answer=0.5)[1]
    alone = capture(
        config=replace(
            CONFIG, modalities={**both, "depth": replace(both["depth"], loss_weight=0.0)}
        ),
        answer=0.5,
    )[1]
    assert float(weighted["loss_depth"]) == float(plain["loss_depth"])
    depth = float(plain["loss"] - alone["loss"])
    assert float(weighted["loss"]) == pytest.approx(float(alone["loss"]) + 3 * depth, rel=1e-5)


def test_logged_loss_is_divided_by_examples_with_a_target():
    """Half the depth maps missing and some given: the curve stays that of what is predicted."""
    seen, metrics = capture()
    x0, observed = MODALITIES["depth"].to_tokens(BATCH)
    t = np.asarray(seen["t"]["depth"])
    squares = [
        np.mean(np.asarray(x0[i])[np.asarray(observed[i])] ** 2) / max(t[i], 0.05) ** 2
        for i in range(B)
        if t[i] > 0
    ]
    assert float(metrics["loss_depth"]) == pytest.approx(np.mean(squares), rel=1e-4)


def test_image_alone_is_trained_by_the_same_step():
    config = tiny.t2i()
    seen, metrics = capture(on_device(tiny.batch(config, B)), config)
    assert set(seen["x_t"]) == set(seen["t"]) == {"image"}
    assert set(metrics) == {"loss_image", "loss_image_by_level", "loss"}
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss_image"]))


def test_text_dropout_uses_the_null_text():
    text = {"tokens": jnp.full((1000, 3), 7), "mask": jnp.ones((1000, 3), bool)}
    null = {"tokens": np.array([5, 0, 0]), "mask": np.array([True, False, False])}
    keys = jax.random.split(jax.random.key(0), 1000)
    out = text_dropout(keys, text, null, 0.1)
    dropped = np.asarray(out["tokens"][:, 0] == 5)
    assert dropped.mean() == pytest.approx(0.1, abs=0.03)
    for name in text:
        np.testing.assert_array_equal(
            out[name][dropped], np.broadcast_to(null[name], (dropped.sum(), 3))
        )
        np.testing.assert_array_equal(out[name][~dropped], text[name][~dropped])
    assert not np.any(text_dropout(keys, text, null, 1.0)["tokens"][:, 0] != 5)
    assert not np.any(text_dropout(keys, text, null, 0.0)["tokens"] == 5)


# ---- Self-distillation


def test_distillation_weights_the_velocity_error_by_the_depth_noise_level():
    config = replace(
        CONFIG, train=replace(CONFIG.train, distill=True, distill_high=2.0, distill_low=0.5)
    )
    shown = []

    def teacher(x_t, t, text):
        shown.append((x_t, t, text))
        return {"image": jnp.full(x_t["image"].shape, 0.7)}

    seen, metrics = capture(config=config, answer=0.2, teacher=teacher)
    ((x_t, t, text),) = shown
    assert set(x_t) == set(t) == {"image"}  # alone, on the same noisy image, with the same text
    np.testing.assert_array_equal(x_t["image"], seen["x_t"]["image"])
    np.testing.assert_array_equal(t["image"], seen["t"]["image"])
    jax.tree.map(np.testing.assert_array_equal, text, seen["text"])
    level, other = np.asarray(t["image"]), np.asarray(seen["t"]["depth"])
    weight = 2.0 * other + 0.5 * (1 - other)
    each = np.where(level > 0, weight * (0.5 / np.maximum(level, 0.05)) ** 2, 0.0)
    assert float(metrics["loss_distill"]) == pytest.approx(each.mean(), rel=1e-4)
    plain = capture(answer=0.2)[1]
    assert float(metrics["loss"] - plain["loss"]) == pytest.approx(each.mean(), rel=1e-3)


def test_distillation_loss_starts_at_zero_without_depth_tokens():
    teacher_config = tiny.t2i()
    teacher_graph, teacher = tiny.network(teacher_config)
    student = merge_params(teacher, init_params(CONFIG, MODALITIES), ("depth",))
    config = replace(CONFIG, train=replace(CONFIG.train, distill=True))
    graph, _ = tiny.network(CONFIG)

    def run(params, frozen, silent):
        def model(x_t, t, text):
            network = nnx.merge(graph, params)
            alone = {"image": x_t["image"]}, {"image": t["image"]}, text
            return network(x_t, t, text) | (network(*alone) if silent else {})

        fixed = {**FIXED, "config": config, "teacher": nnx.merge(teacher_graph, frozen)}
        sums = compute_loss(model, MODALITIES, BATCH, jnp.int32(0), **fixed)[1]
        return sums["loss_distill"][0]

    assert float(jax.jit(run, static_argnums=2)(student, teacher, True)) < 1e-10
    heard, (push, taught) = jax.jit(jax.value_and_grad(run, argnums=(0, 1)), static_argnums=2)(
        student, teacher, False
    )
    assert 1e-6 < float(heard) < np.inf
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(push))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(taught))  # the teacher is frozen
