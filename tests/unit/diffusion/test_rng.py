"""Random keys depend on (seed, name, step, example) and on nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.diffusion import rng


def bits(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_same_name_and_step_give_the_same_key():
    assert bits(rng.named_key(3, "noise", 7)) == bits(rng.named_key(3, "noise", 7))


@pytest.mark.parametrize("other", [(4, "noise", 7), (3, "levels", 7), (3, "noise", 8)])
def test_seed_name_and_step_each_change_the_key(other):
    assert bits(rng.named_key(3, "noise", 7)) != bits(rng.named_key(*other))


def test_traced_step_gives_the_key_of_the_number():
    traced = jax.jit(lambda step: jax.random.key_data(rng.named_key(3, "noise", step)))(np.int32(7))
    assert tuple(np.asarray(traced).tolist()) == bits(rng.named_key(3, "noise", 7))


def test_key_is_the_same_in_another_process():
    # `hash` of a name is salted anew in each process: a resumed run would draw other noise.
    result = subprocess.run(
        [sys.executable, "-c", "import jax; from modality_forcing.diffusion import rng\n"
         "print(jax.random.key_data(rng.named_key(3, 'noise', 7)).tolist())"],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == str(list(bits(rng.named_key(3, "noise", 7))))


def test_keys_do_not_depend_on_the_position_in_the_batch():
    key = rng.named_key(0, "noise", 0)
    index = jnp.array([5, 0, 9, 123_456], jnp.int32)
    keys = jax.random.key_data(rng.per_example(key, index))
    order = np.array([2, 3, 1, 0])
    np.testing.assert_array_equal(
        jax.random.key_data(rng.per_example(key, index[order])), keys[order]
    )
    np.testing.assert_array_equal(jax.random.key_data(rng.per_example(key, index[2:3])), keys[2:3])


def test_examples_have_different_keys():
    keys = np.asarray(
        jax.random.key_data(rng.per_example(rng.named_key(0, "noise", 0), jnp.arange(1000)))
    )
    assert len(np.unique(keys, axis=0)) == 1000
