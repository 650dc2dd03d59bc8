"""The FLUX.2 network: klein's where the image is alone, and any subset of modalities."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.config import Config, DataConfig, TextConfig
from modality_forcing.modalities import base
from modality_forcing.models import presets
from modality_forcing.models.blocks import Stack
from modality_forcing.models.flux2 import DoubleBlock, Reference, SingleBlock, add, modulate
from modality_forcing.models.layers import layer_norm
from modality_forcing.train.optim import param_group
from modality_forcing.train.state import abstract_model
from modality_forcing.tree import flatten, unflatten
from tests import tiny

B = 3
NAMES = ("text", "image")
CONFIG = tiny.flux2()
MODALITIES = base.build(CONFIG)
NOISY = {
    n: jax.random.normal(jax.random.key(i), (B, *m.shape))
    for i, (n, m) in enumerate(MODALITIES.items())
}
T = {"image": jnp.array([0.1, 0.5, 0.9]), "depth": jnp.array([0.8, 0.4, 0.0])}
TEXT = jax.tree.map(jnp.asarray, tiny.batch(CONFIG, B)["text"])


@pytest.fixture(scope="module")
def joint():
    """A perturbed network of both modalities, compiled as (weights, noisy, t, text) -> out."""
    graph, params = tiny.network(CONFIG)
    return jax.jit(lambda p, *args: nnx.merge(graph, p)(*args)), params


def of(name: str, values):
    return {name: values[name]}


def test_predictions_have_the_input_shapes_in_float32(joint):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    assert {n: y.shape for n, y in out.items()} == {n: x.shape for n, x in NOISY.items()}
    assert all(y.dtype == jnp.float32 and float(y.std()) > 0.1 for y in out.values())


def test_image_alone_is_the_network_without_other_modalities_to_the_bit(joint):
    run, params = joint
    alone = replace(CONFIG, modalities={"image": tiny.IMAGE})
    graph, shapes = abstract_model(alone, base.build(alone))
    weights, own = flatten(params), flatten(shapes)
    klein = {path: weights.get(path, {}) for path in own}  # the rest is empty: level_gate_cross
    assert len(klein) < len(weights)
    network = jax.jit(lambda p, *args: nnx.merge(graph, p)(*args))
    args = of("image", NOISY), of("image", T), TEXT
    out = network(unflatten(klein), *args)["image"]
    np.testing.assert_array_equal(run(params, *args)["image"], out)


def test_each_modality_depends_on_the_other_and_on_text(joint):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    for name, other in (("image", "depth"), ("depth", "image")):
        moved = run(params, {**NOISY, other: NOISY[other] + 1.0}, T, TEXT)
        assert not np.allclose(moved[name], out[name], atol=1e-3)
        text = {**TEXT, "tokens": TEXT["tokens"].at[:, -1].add(1)}
        assert not np.allclose(run(params, NOISY, T, text)[name], out[name], atol=1e-3)


def test_noise_level_acts_on_its_own_example_only(joint):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    for name in T:
        moved = run(params, NOISY, {**T, name: T[name].at[1].set(0.65)}, TEXT)
        for n in out:
            changed = np.abs(np.asarray(moved[n] - out[n])).max(axis=(1, 2))
            assert changed[1] > 1e-3 and changed[[0, 2]].max() < 1e-5


def test_levels_of_others_pass_through_gates(joint):
    _, params = joint
    graph, _ = abstract_model(CONFIG, MODALITIES)
    gates = {"level_gate_cross": {pair: jnp.zeros(()) for pair in params["level_gate_cross"]}}
    closed, opened = (nnx.merge(graph, {**params, **g}) for g in (gates, {}))
    alone = closed.conditioning("image", of("image", T))
    np.testing.assert_array_equal(closed.conditioning("image", T), alone)
    assert np.abs(np.asarray(opened.conditioning("image", T) - alone)).max() > 1e-3


def test_reference_image_is_seen_and_not_returned(joint):
    run, params = joint
    args = of("image", NOISY), of("image", T), TEXT
    out = run(params, *args)["image"]
    shape = (B, 6, MODALITIES["image"].channels)
    reference = jax.random.normal(jax.random.key(4), shape)
    graph, _ = abstract_model(CONFIG, MODALITIES)

    @jax.jit
    def show(*tokens):
        references = [Reference(x, (2, 3)) for x in tokens]
        return nnx.merge(graph, params)(*args, references)["image"]

    one = show(reference)
    assert one.shape == out.shape and np.abs(np.asarray(one - out)).max() > 1e-3
    # The second of two equal ones is at another position.
    assert np.abs(np.asarray(show(reference, reference) - one)).max() > 1e-4


def test_bfloat16_levels_are_coarse():
    """Near 1, neighbors are 1/256 apart, and 1000 t is rounded again."""
    rounded = replace(CONFIG, model=replace(CONFIG.model, level_dtype="bfloat16"))
    graph, params = tiny.network(rounded)
    network = nnx.merge(graph, params)
    for t, same in ((0.9990, True), (0.9897, False)):
        a, b = (network.conditioning("image", {"image": jnp.array([x])}) for x in (1.0, t))
        assert a.dtype == jnp.bfloat16 and np.array_equal(a, b) == same


@pytest.mark.parametrize("f", [modulate, add])
def test_batch_of_one_has_the_values_and_gradients_of_an_example_among_others(f):
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = (jax.random.normal(key, (2, 5, 8)) for key in keys[:2])
    row, other = (jax.random.normal(key, (2, 1, 8)) for key in keys[2:])
    arguments = (x, row, other if f is modulate else y)

    def value_and_gradients(*arguments):
        out, vjp = jax.vjp(f, *arguments)
        return out, *vjp(jnp.sin(out))

    both, one = (value_and_gradients(*(a[:n] for a in arguments)) for n in (2, 1))
    for ours, expected in zip(one, both, strict=True):
        assert ours.shape == (1, *expected.shape[1:])
        np.testing.assert_allclose(ours, expected[:1], rtol=1e-5, atol=1e-5)


def test_layer_norm_subtracts_the_mean():
    x = np.array([[1.0, 2.0, 6.0]])
    expected = (x - 3.0) / np.sqrt(14 / 3 + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "context", "names", "count"),
    [
        ("klein-4b", 7680, ("image",), 3_875_544_576),
        ("klein-9b", 12_288, ("image",), 9_078_581_248),
        ("flux2-dev", 15_360, ("image",), 32_223_281_152),
        ("klein-9b", 12_288, ("image", "depth"), 11_986_285_570),
    ],
)
def test_sizes_have_the_published_parameters_and_each_has_a_group(size, context, names, count):
    """Counts of Black Forest Labs' files and of Modality Forcing's release (v2)."""
    image = replace(tiny.IMAGE, patch=16, latent_channels=128)
    depth = replace(CONFIG.modalities["depth"], patch=16, detokenizer_layers=4)
    modalities = {"image": image, "depth": depth}
    config = Config(
        data=DataConfig(resolution=512),
        text=TextConfig(tokens=512, vocab_size=0, channels=context),
        model=presets.size(size),
        modalities={name: modalities[name] for name in names},
    )
    shapes = flatten(abstract_model(config, base.build(config))[1])
    assert sum(x.size for x in shapes.values()) == count
    groups = {param_group(tuple(path.split("/"))) for path in shapes}
    assert groups == {"input", "hidden", "output", "vector"}


def test_backward_pass_with_elementwise_remat_computes_no_product_again():
    def products(jaxpr) -> int:
        inner = [
            getattr(part, "jaxpr", part)
            for eqn in jaxpr.eqns
            for value in eqn.params.values()
            for part in (value if isinstance(value, tuple | list) else [value])
        ]
        own = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
        return own + sum(products(part) for part in inner if hasattr(part, "eqns"))

    def count(block: type[nnx.Module], streams: int, remat: str) -> int:
        c = replace(CONFIG.model, remat=remat)
        names = [NAMES[:streams]] if streams > 1 else []
        x, row = jnp.ones((1, 4, c.width)), jnp.ones((1, 1, 6 * c.width if names else 3 * c.width))
        rotation = jnp.ones((2, 4 * streams, c.head_dim // 2))
        stack = nnx.eval_shape(lambda: Stack(c, 1, partial(block, c, *names), rngs=nnx.Rngs(0)))
        graph, weights = nnx.split(stack)

        def loss(weights, row):
            args = [dict.fromkeys(NAMES, value) for value in (x, row)] if names else [x, row, (0,)]
            return sum(map(jnp.sum, jax.tree.leaves(nnx.merge(graph, weights)(*args, rotation))))

        return products(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(weights, row).jaxpr)

    for block, streams in ((SingleBlock, 1), (DoubleBlock, 2)):
        assert count(block, streams, "elementwise") == count(block, streams, "none")
