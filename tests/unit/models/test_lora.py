"""Low-rank updates: nothing at the start, a matrix's worth when merged, for either network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.config import MATRICES, Config
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models import lora
from modality_forcing.models.layers import Adapted, sharded_einsum
from modality_forcing.models.lora import merge, split
from modality_forcing.tree import flatten, unflatten
from tests import tiny

LORA = {"lora_rank": 2, "lora_alpha": 6.0, "allow_missing_modalities": ()}
FAMILIES = {"forcing": tiny.forcing, "flux2": tiny.flux2}


def predict(config: Config, params) -> dict[str, np.ndarray]:
    graph, _ = tiny.network(config)
    modalities = base.build(config)
    noisy = {
        n: jax.random.normal(jax.random.key(i), (2, *m.shape))
        for i, (n, m) in enumerate(modalities.items())
    }
    t = dict.fromkeys(noisy, jnp.array([0.2, 0.9]))
    text = jax.tree.map(jnp.asarray, tiny.batch(config, 2)["text"])
    run = jax.jit(lambda p: nnx.merge(graph, p)(noisy, t, text))
    return jax.device_get(run(params))


@pytest.mark.parametrize("family", FAMILIES)
def test_network_is_its_base_at_the_start_and_the_merged_one_later(family):
    config, plain = FAMILIES[family](**LORA), FAMILIES[family]()
    params = tiny.network(config)[1]
    weights, updates = split(params)
    assert flatten(weights).keys() == flatten(tiny.network(plain)[1]).keys()
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if path[-1].key == "b" else x, updates
    )
    joined = unflatten({**flatten(weights), **flatten(fresh)})
    expected = predict(plain, weights)
    # Merged to the bit; apart XLA fuses what follows a product in another way.
    jax.tree.map(np.testing.assert_array_equal, merge(joined, config.train.lora_scale), weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max(), rtol=0),
        predict(config, joined),
        expected,
    )
    merged = merge(params, config.train.lora_scale)
    assert flatten(merged).keys() == flatten(weights).keys()
    apart, together = predict(config, params), predict(plain, merged)
    for name in expected:
        largest = np.abs(together[name]).max()
        np.testing.assert_allclose(apart[name], together[name], atol=2e-5 * largest, rtol=0)
        assert np.abs(apart[name] - expected[name]).max() > 1e-2 * largest


def test_each_stacked_matrix_of_the_targets_has_an_update_but_those_of_new_modalities():
    def adapted(config: Config) -> set[str]:
        updates = flatten(split(tiny.network(config)[1])[1])
        assert {path.rsplit("/", 1)[1] for path in updates} <= {"a", "b"}
        return {path.rsplit("/", 1)[0].replace("lora/", "") for path in updates}

    streams = ("double/layers/text", "double/layers/image", "double/layers/depth")
    owners = (*streams, "single/layers", "head/depth/blocks/layers")
    everything = {f"{owner}/{name}" for owner in owners for name in MATRICES}
    assert adapted(tiny.flux2(**LORA)) == everything
    new = {**LORA, "allow_missing_modalities": ("depth",), "lora_targets": ("q", "down")}
    kept = {
        f"{owner}/{name}" for owner in (*streams[:2], "single/layers") for name in ("q", "down")
    }
    assert adapted(tiny.flux2(**new)) == kept
    trunk = {"trunk/layers/q", "trunk/layers/down"}
    assert adapted(tiny.forcing(**new)) == trunk


def test_matrix_that_a_block_does_not_have_is_refused():
    with pytest.raises(
        UserError, match=r"lora_targets names .qkv., which is not a matrix .* q, k, v"
    ):
        tiny.t2i(lora_rank=2, lora_targets=("q", "qkv"))
    with pytest.raises(UserError, match="lora_targets is empty"):
        tiny.t2i(lora_rank=2, lora_targets=())


@pytest.mark.parametrize(
    "equation, shape", [("bnd,dhk->bhnk", (6, 2, 5)), ("bnhk,hkd->bnd", (2, 5, 6))]
)
def test_product_with_an_update_equals_that_with_the_sum(equation, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 6) if shape[0] == 6 else (3, 4, 2, 5), np.float32)
    w = rng.standard_normal(shape, np.float32)
    inputs, outputs = ((6,), (2, 5)) if shape[0] == 6 else ((2, 5), (6,))
    a = rng.standard_normal((*inputs, 3), np.float32)
    b = rng.standard_normal((3, *outputs), np.float32)
    on_device = [jnp.asarray(y) for y in (w, a, b)]
    found = sharded_einsum(equation, jnp.asarray(x), Adapted(*on_device, 0.5))
    update = 0.5 * np.tensordot(a, b, 1)
    np.testing.assert_allclose(found, np.einsum(equation, x, w + update), rtol=1e-4, atol=1e-4)
    w, a, b = on_device
    start = sharded_einsum(equation, jnp.asarray(x), Adapted(w, a, jnp.zeros_like(b), 0.5))
    np.testing.assert_array_equal(start, sharded_einsum(equation, jnp.asarray(x), w))


def test_merged_matrices_are_float32_and_the_others_untouched():
    params = tiny.network(tiny.t2i(**LORA))[1]
    narrow = {
        path: x.astype(jnp.bfloat16) if not lora.is_update(path) else x
        for path, x in flatten(params).items()
    }
    merged = flatten(merge(unflatten(narrow), 3.0))
    a, b = params["trunk"]["layers"]["lora"]["q"]["a"], params["trunk"]["layers"]["lora"]["q"]["b"]
    expected = np.asarray(narrow["trunk/layers/q"], np.float32) + 3.0 * np.asarray(a) @ np.asarray(
        b
    )
    np.testing.assert_allclose(merged["trunk/layers/q"], expected, rtol=1e-5, atol=1e-5)
    assert merged["trunk/layers/q"].dtype == jnp.float32
    assert merged["head/image/linear/w"] is narrow["head/image/linear/w"]


def test_rank_above_the_matrices_is_one_line():
    with pytest.raises(UserError, match=r"train\.lora_rank 9 is above the 8 of a matrix"):
        lora.LowRank((2, 8, 16), 9, 1.0, rngs=nnx.Rngs(0))
