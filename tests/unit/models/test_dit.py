"""The network: any subset of modalities, each at its level, and exact identities at the start."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modality_forcing.modalities import base
from modality_forcing.models.blocks import broadcast_modulation
from modality_forcing.models.restore import merge_params
from modality_forcing.train.state import init_params
from tests import tiny

CONFIG = tiny.forcing()
MODALITIES = base.build(CONFIG)
BOTH = tuple(MODALITIES)
B = 3
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
    return jax.jit(lambda p, noisy, t, text: nnx.merge(graph, p)(noisy, t, text)), params


def only(*names: str, of=NOISY):
    return {n: of[n] for n in names}


def test_predictions_have_the_input_shapes_in_float32(joint):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    assert {n: y.shape for n, y in out.items()} == {n: x.shape for n, x in NOISY.items()}
    assert all(y.dtype == jnp.float32 and float(y.std()) > 0.1 for y in out.values())


@pytest.mark.parametrize("names", [("image",), ("depth",)])
def test_absent_modalities_leave_no_trace(joint, names):
    run, params = joint
    out = run(params, only(*names), only(*names, of=T), TEXT)
    assert set(out) == set(names)
    absent = next(n for n in BOTH if n not in names)
    for module in ("tokenizer", "level_embedder", "head"):
        changed = jax.tree.map(lambda w: w + 1, params[module][absent])
        params = {**params, module: {**params[module], absent: changed}}
    moved = run(params, only(*names), only(*names, of=T), TEXT)
    np.testing.assert_array_equal(moved[names[0]], out[names[0]])


def test_each_modality_depends_on_the_other(joint):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    for name, other in (BOTH, BOTH[::-1]):
        moved = run(params, {**NOISY, other: NOISY[other] + 1.0}, T, TEXT)
        assert not np.allclose(moved[name], out[name], atol=1e-3)


def test_order_of_the_inputs_does_not_matter(joint):
    run, params = joint
    reordered = run(params, dict(reversed(NOISY.items())), dict(reversed(T.items())), TEXT)
    jax.tree.map(np.testing.assert_array_equal, reordered, run(params, NOISY, T, TEXT))


@pytest.mark.parametrize("name", BOTH)
def test_noise_level_acts_on_its_own_example_only(joint, name):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    moved = run(params, NOISY, {**T, name: T[name].at[1].set(0.65)}, TEXT)
    for n in BOTH:
        np.testing.assert_array_equal(np.delete(moved[n], 1, axis=0), np.delete(out[n], 1, axis=0))
        assert np.abs(moved[n][1] - out[n][1]).max() > 1e-3


def test_examples_are_independent(joint):
    run, params = joint
    out = run(params, NOISY, T, TEXT)
    order = np.array([2, 0, 1])
    reordered = run(params, *tiny.take((NOISY, T, TEXT), order))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[order], rtol=1e-5, atol=1e-5), reordered, out
    )


def test_text_matters_where_it_is_not_padding(joint):
    run, params = joint
    tokens, mask = TEXT["tokens"], TEXT["mask"].at[0].set(jnp.array([True, True, False]))

    def image(tokens, mask=mask):
        return np.asarray(run(params, NOISY, T, {"tokens": tokens, "mask": mask})["image"])

    def moves(tokens, other, **changes):
        return np.abs(image(tokens, **changes) - image(other))[0].max() > 1e-4

    np.testing.assert_array_equal(image(tokens.at[0, 2].add(1)), image(tokens))
    assert moves(tokens.at[0, 1].set((tokens[0, 1] + 1) % 16), tokens)
    assert moves(tokens, tokens, mask=mask.at[0, 2].set(True))
    ordered, swapped = (tokens.at[0, :2].set(jnp.array(pair)) for pair in ([5, 9], [9, 5]))
    assert moves(ordered, swapped)


def test_text_is_modulated_by_the_primary_level():
    reordered = replace(CONFIG, modalities=dict(reversed(CONFIG.modalities.items())))
    for config, primary in ((CONFIG, "image"), (reordered, "depth")):
        graph, params = tiny.network(config)
        model = nnx.merge(graph, params)
        seen = []
        model.trunk = lambda x, m, segments, angles, seen=seen: (
            seen.append(broadcast_modulation(m, segments, x.shape[1])) or x
        )
        model(NOISY, T, TEXT)
        m, l = seen[0], TEXT["tokens"].shape[1]
        own = model.modulation(jax.nn.silu(model.conditioning(primary, T)))
        np.testing.assert_array_equal(
            m[:, :l], np.broadcast_to(own[:, None], (B, l, own.shape[-1]))
        )


def test_tokens_are_modulated_by_their_own_modality(joint):
    graph, params = tiny.network(CONFIG)
    model, seen = nnx.merge(graph, params), []
    model.trunk = lambda x, m, segments, angles: (
        seen.append((broadcast_modulation(m, segments, x.shape[1]), angles)) or x
    )
    model(NOISY, T, TEXT)
    (m, angles), start = seen[0], 3
    for name, modality in MODALITIES.items():
        own = model.modulation(jax.nn.silu(model.conditioning(name, T)))[:, None]
        n = modality.shape[0]
        np.testing.assert_array_equal(
            m[:, start : start + n], np.broadcast_to(own, (B, n, own.shape[-1]))
        )
        start += n
    assert start == m.shape[1] == len(angles) == 3 + 4 + 16


@pytest.fixture(scope="module")
def fresh() -> dict:
    return init_params(CONFIG, MODALITIES)


def test_fresh_network_predicts_exactly_zero(joint, fresh):
    run, _ = joint
    for out in run(fresh, NOISY, T, TEXT).values():
        np.testing.assert_array_equal(out, np.zeros_like(out))


def test_fresh_blocks_are_identities(fresh):
    graph, _ = tiny.network(CONFIG)
    model = nnx.merge(graph, fresh)
    x = jax.random.normal(jax.random.key(0), (B, 5, CONFIG.model.width))
    angles = jnp.ones((5, CONFIG.model.head_dim // 2))
    for stack, modulation in (
        (model.trunk, model.modulation),
        (model.head["depth"].blocks, model.head["depth"].block_modulation),
    ):
        m = modulation(jax.nn.silu(model.conditioning("image", T)))[:, None]
        np.testing.assert_array_equal(stack(x, m, (0,), angles), x)


def test_cross_conditioning_is_gated_and_starts_at_zero(fresh):
    graph, _ = tiny.network(CONFIG)
    for name, other in (BOTH, BOTH[::-1]):
        model = nnx.merge(graph, fresh)
        alone, both = model.conditioning(name, only(name, of=T)), model.conditioning(name, T)
        np.testing.assert_array_equal(both, alone)
        model.level_gate_cross[f"{name}_from_{other}"][...] = jnp.float32(0.5)
        mixed = model.conditioning(name, T)
        np.testing.assert_allclose(
            mixed,
            alone + 0.5 * model.level_embedder_cross[f"{name}_from_{other}"](T[other]),
            rtol=1e-5,
            atol=1e-6,
        )
        assert np.abs(mixed - alone).max() > 1e-2


def test_joint_model_without_depth_equals_the_text_to_image_model_bitwise(fresh):
    """The start of post-training: a merged checkpoint, run on the image alone."""
    config = tiny.t2i()
    graph, pretrained = tiny.network(config, seed=5)
    joint_graph, _ = tiny.network(CONFIG)
    merged = merge_params(pretrained, fresh, ("depth",))
    inputs = (only("image"), only("image", of=T), TEXT)
    one = jax.jit(lambda p, *q: nnx.merge(graph, p)(*q))(pretrained, *inputs)
    both = jax.jit(lambda p, *q: nnx.merge(joint_graph, p)(*q))(merged, *inputs)
    assert float(one["image"].std()) > 0.1
    np.testing.assert_array_equal(both["image"], one["image"])


def test_noise_levels_stay_float32_in_a_bfloat16_model():
    config = replace(CONFIG, model=replace(CONFIG.model, dtype="bfloat16"))
    graph, params = tiny.network(config)
    model = nnx.merge(graph, params)
    close = {"image": jnp.array([0.99, 0.991]), "depth": jnp.array([0.5, 0.5])}
    level = model.conditioning("image", close)
    assert level.dtype == jnp.float32
    assert np.linalg.norm(level[0] - level[1]) > 0.01 * np.linalg.norm(level[0])
    out = model(NOISY, T, TEXT)
    assert all(y.dtype == jnp.float32 for y in out.values())


def test_positions_depend_on_the_modality_id_alone(joint):
    run, params = joint
    graph, _ = tiny.network(CONFIG)
    model, seen = nnx.merge(graph, params), []
    model.trunk = lambda x, m, segments, angles: seen.append(angles) or x
    model(NOISY, T, TEXT)
    model(only("depth"), only("depth", of=T), TEXT)
    np.testing.assert_array_equal(seen[1][3:], seen[0][3 + 4 :])
    moved = {**CONFIG.modalities, "depth": replace(CONFIG.modalities["depth"], position_id=7)}
    graph, _ = tiny.network(replace(CONFIG, modalities=moved))
    out = jax.jit(lambda p, *q: nnx.merge(graph, p)(*q))(params, NOISY, T, TEXT)
    assert np.abs(out["depth"] - run(params, NOISY, T, TEXT)["depth"]).max() > 1e-3
