"""Frozen weights: neither gradient nor moments nor an average of their own, and they never move."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.train import checkpoint, freezing
from modality_forcing.train.freezing import join_params, make_teacher, split_params
from modality_forcing.train.optim import make_optimizer
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import TrainState, init_state
from modality_forcing.train.step import compute_loss, make_step
from modality_forcing.train.step_metrics import normalize_metrics
from modality_forcing.tree import flatten, unflatten
from tests import tiny

FREEZE = ("trunk/layers/q", "tokenizer/image", "*/k_scale", "head/image")
CONFIG = tiny.forcing(freeze=FREEZE, weight_decay=0.1, learning_rate=1e-2)
MODALITIES = base.build(CONFIG)
GRAPH, PARAMS = tiny.network(CONFIG)


def batch(k: int) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, tiny.batch(CONFIG, 4, first=4 * k))


@pytest.fixture(scope="module")
def stepped() -> TrainState:
    """The state after two updates, on the host."""
    step = make_step(CONFIG, MODALITIES, GRAPH, tiny.null_text(CONFIG))
    state = init_state(CONFIG, jax.tree.map(jnp.copy, PARAMS))
    for k in range(2):
        state, _ = step(state, batch(k))
    return jax.device_get(state)


def is_frozen(path: str) -> bool:
    inside = path.startswith(("tokenizer/image/", "head/image/"))
    return inside or path == "trunk/layers/q" or path.endswith("/k_scale")


def test_patterns_name_modules_weights_and_parts_of_paths():
    frozen = freezing.frozen_paths(PARAMS, CONFIG.train)
    assert frozen == {path for path in flatten(PARAMS) if is_frozen(path)}
    assert "head/depth/blocks/layers/k_scale" in frozen and "trunk/layers/q_scale" not in frozen


@pytest.mark.parametrize(
    "freeze, message",
    [
        (("trunk", "trunk/layer"), r"no weight matches 'trunk/layer'; the modules are .*"),
        (("*",), "train.freeze names every weight"),
        (("",), "train.freeze: no weight matches ''"),
    ],
)
def test_pattern_that_fits_nothing_or_all_is_refused(freeze, message):
    with pytest.raises(UserError, match=message) as error:
        jax.eval_shape(partial(init_state, tiny.forcing(freeze=freeze)), PARAMS)
    if "modules are" in message:
        hint = str(error.value)
        assert "head/depth/blocks/layers, " in hint and "trunk/layers" in hint
        assert "tokenizer/depth, " in hint and "/inner" not in hint


def test_split_weights_join_to_the_same():
    trained, frozen = split_params(PARAMS, CONFIG.train)
    assert not flatten(trained).keys() & flatten(frozen).keys()
    jax.tree.map(np.testing.assert_array_equal, join_params(trained, frozen), PARAMS)
    assert split_params(PARAMS, tiny.forcing().train) == (PARAMS, {})


def test_frozen_weights_do_not_move_and_have_no_optimizer_state(stepped):
    frozen = {path: leaf for path, leaf in flatten(PARAMS).items() if is_frozen(path)}
    assert flatten(stepped.frozen).keys() == frozen.keys()
    for path, leaf in flatten(stepped.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[path], strict=True)
    kept = {"params": stepped.params, "ema": stepped.ema, "opt_state": stepped.opt_state}
    for path, _ in jax.tree_util.tree_leaves_with_path(kept):
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        assert not is_frozen("/".join(names[1:])), path
    moved = flatten(jax.tree.map(lambda a, b: np.any(a != b), stepped.params, split(PARAMS)))
    assert all(moved.values())


def split(params):
    return split_params(params, CONFIG.train)[0]


def test_trained_weights_equal_those_of_a_run_with_masked_gradients(stepped):
    free = tiny.forcing(weight_decay=0.1, learning_rate=1e-2)
    labels = unflatten({p: "frozen" if is_frozen(p) else "trained" for p in flatten(PARAMS)})
    masked = optax.multi_transform(
        {"trained": make_optimizer(free.train, 32), "frozen": optax.set_to_zero()}, labels
    )

    @jax.jit
    def step(params, state, batch, k):
        def loss(params):
            fixed = {"config": free, "null_text": tiny.null_text(free)}
            return compute_loss(nnx.merge(GRAPH, params), MODALITIES, batch, k, **fixed)[0]

        updates, state = masked.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, masked.init(PARAMS)
    for k in range(2):
        params, state = step(params, state, batch(k), jnp.int32(k))
    flat = flatten(params)
    for path, leaf in flatten(stepped.params).items():
        # Adam divides small gradients, and with them their rounding, by themselves.
        np.testing.assert_allclose(leaf, flat[path], atol=1e-4, rtol=0, err_msg=path)
    moments = state.inner_states["trained"].inner_state[1][0].mu
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0),
        stepped.opt_state[1][0].mu,
        split(moments),
    )


T2I = tiny.t2i()
T2I_GRAPH, T2I_PARAMS = tiny.network(T2I)


def gradient(params: freezing.Params, frozen: freezing.Params) -> Any:
    """The gradient with respect to `params`, jitted, as the step computes it."""
    fixed = {"config": T2I, "null_text": tiny.null_text(T2I)}
    modalities = base.build(T2I)

    def loss(params: freezing.Params, frozen: freezing.Params) -> Any:
        model = nnx.merge(T2I_GRAPH, join_params(params, frozen))
        return compute_loss(model, modalities, batch(0), jnp.int32(0), **fixed)[0]

    return jax.jit(jax.grad(loss)).lower(params, frozen).compile()


def test_no_gradient_of_frozen_weights_is_computed():
    def products(*freeze: str) -> int:
        split = split_params(T2I_PARAMS, tiny.t2i(freeze=freeze).train)
        return len(re.findall(r" dot\(", gradient(*split).as_text()))

    # One product each: in the backward pass over the layers, which is one loop.
    assert products() - products("trunk/layers/gate", "trunk/layers/up") == 2


def test_bfloat16_is_for_frozen_matrices_only_and_keeps_the_result():
    config = tiny.t2i(freeze=("trunk", "text_embedder"), frozen_dtype="bfloat16")
    trained, frozen = split_params(T2I_PARAMS, config.train)
    for path, leaf in flatten(frozen).items():
        is_vector = path.endswith(("_scale", "offset", "padding"))
        assert leaf.dtype == (jnp.float32 if is_vector else jnp.bfloat16), path
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {np.dtype("float32")}
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), frozen)
    narrow, wide = (gradient(trained, tree)(trained, tree) for tree in (frozen, widened))
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)


def test_checkpoint_holds_frozen_weights_once_and_restores_alone(stepped, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(jax.tree.map(jnp.asarray, stepped), CONFIG, {})
    checkpoints.close()
    folder = tmp_path / "checkpoints" / "2"
    assert {p.name for p in folder.iterdir() if p.is_dir()} >= {"params", "ema", "frozen"}
    restored, _ = checkpoint.read_state(folder, stepped)
    jax.tree.map(np.testing.assert_array_equal, restored, stepped)
    config, params = checkpoint.load(folder)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, stepped.all_ema())
    assert flatten(params).keys() == flatten(PARAMS).keys()


def test_teacher_shares_the_frozen_weights_of_its_student():
    config = replace(CONFIG, train=replace(CONFIG.train, distill=True))
    weights = unflatten({path: flatten(PARAMS)[path] for path in flatten(T2I_PARAMS)})
    state = init_state(config, jax.tree.map(jnp.copy, PARAMS))
    teacher = make_teacher(T2I_GRAPH, weights, state.frozen)
    assert set(teacher.shared) == {path for path in flatten(weights) if is_frozen(path)}
    assert not set(teacher.shared) & flatten(teacher.params).keys()
    found = teacher.all_params(teacher.params, state.frozen)
    jax.tree.map(np.testing.assert_array_equal, found, weights)

    @jax.jit
    def loss(student, teacher):
        null, model = tiny.null_text(config), nnx.merge(T2I_GRAPH, teacher)
        fixed = {"config": config, "null_text": null, "teacher": model}
        student = nnx.merge(GRAPH, student)
        return compute_loss(student, MODALITIES, batch(0), jnp.int32(0), **fixed)[1]

    expected = normalize_metrics(loss(PARAMS, weights))["loss_distill"]
    step = make_step(config, MODALITIES, GRAPH, tiny.null_text(config), teacher=teacher)
    _, metrics = step(state, batch(0))
    assert expected > 0
    np.testing.assert_allclose(metrics["loss_distill"], expected, rtol=1e-5)
