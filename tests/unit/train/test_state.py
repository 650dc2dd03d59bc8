"""The state of a run: born from the seed alone, its EMA a copy of its own."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from modality_forcing.modalities import base
from modality_forcing.models.dit import DiT
from modality_forcing.train.state import abstract_model, init_params, init_state, params_hash
from tests import tiny

CONFIG = tiny.forcing()
MODALITIES = base.build(CONFIG)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, MODALITIES)


def test_initial_weights_depend_only_on_the_seed():
    config = tiny.t2i()
    params, again, other = (
        init_params(replace(config, seed=seed), base.build(config)) for seed in (3, 3, 4)
    )
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert not np.allclose(other["trunk"]["layers"]["q"], params["trunk"]["layers"]["q"])


def test_abstract_model_has_the_shapes_of_the_real_one(params):
    graph, shapes = abstract_model(CONFIG, MODALITIES)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert described(shapes) == described(params)
    assert np.any(params["tokenizer"]["depth"]["w"])
    assert isinstance(nnx.merge(graph, params), DiT)


def test_weights_are_float32_for_every_compute_dtype():
    config = replace(CONFIG, model=replace(CONFIG.model, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_model(config, MODALITIES)[1])} == {
        np.dtype("float32")
    }


def test_initial_state_has_step_zero_and_an_ema_equal_to_its_weights(params):
    state = init_state(CONFIG, params)
    assert int(state.step) == 0 and state.step.dtype == np.int32
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_ema_shares_no_memory_with_the_weights(params):
    # The step consumes its input state: one buffer in two places could not be given away twice.
    state = init_state(CONFIG, params)

    def where(tree):
        return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}

    assert not where(state.params) & where(state.ema)


def test_params_hash_depends_on_every_bit_path_and_shape(params):
    plain = params_hash(params)
    assert params_hash(jax.tree.map(np.asarray, params)) == plain and len(plain) == 12
    leaves, treedef = jax.tree.flatten(params)
    for place in (0, len(leaves) - 1):
        other = [np.array(leaf) for leaf in leaves]
        flat = other[place].reshape(-1)
        flat[-1] = np.nextafter(flat[-1], np.float32(9))
        assert params_hash(treedef.unflatten(other)) != plain
    swapped = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.zeros(6, "f4").reshape(2, 3)}
    assert params_hash(swapped) != params_hash({"a": swapped["b"], "b": swapped["a"]})
    assert params_hash({"a": swapped["a"]}) != params_hash({"a": swapped["a"].reshape(3, 2)})
    assert params_hash({"a": swapped["a"]}) != params_hash({"a": swapped["a"][::-1].copy()})
    signs = np.array([[-1, 1, -1], [1, 1, 1]], "f4")  # an even number of flipped bits
    assert params_hash({"a": swapped["a"] + 1}) != params_hash({"a": (swapped["a"] + 1) * signs})
    assert params_hash({"a": swapped["a"].astype(jax.numpy.bfloat16)}) != params_hash(
        {"a": swapped["a"]}
    )
