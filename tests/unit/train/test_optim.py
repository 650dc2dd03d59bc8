"""The optimizer: its schedules, its clipping, and weight decay on matrices alone."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modality_forcing.config import Config, TrainConfig
from modality_forcing.train.optim import make_optimizer, param_group, schedule, weight_decay_mask
from modality_forcing.tree import flatten, unflatten
from tests import tiny

C = TrainConfig(steps=100, learning_rate=0.1, warmup_fraction=0.1, decay_fraction=0.2)
SHAPES = tiny.network(tiny.forcing())[1]


def rates(c: TrainConfig) -> np.ndarray:
    return np.array([float(schedule(c)(jnp.int32(k))) for k in range(c.steps)])


def test_wsd_warms_up_stays_constant_and_decays():
    actual = rates(C)
    np.testing.assert_allclose(actual[:10], 0.1 * (np.arange(10) + 1) / 10, rtol=1e-5)
    np.testing.assert_allclose(actual[10:81], 0.1, rtol=1e-5)
    share = np.arange(20) / 20
    np.testing.assert_allclose(actual[80:], 0.1 * (1 - 0.95 * np.sqrt(share)), rtol=1e-5)
    assert float(schedule(C)(jnp.int32(1000))) == pytest.approx(0.005)


def test_cosine_warms_up_and_decays_to_a_tenth():
    actual = rates(
        TrainConfig(steps=100, learning_rate=0.1, warmup_fraction=0.1, schedule="cosine")
    )
    assert np.all(np.diff(actual[:11]) > 0) and np.all(np.diff(actual[10:]) < 0)
    assert actual.max() == pytest.approx(0.1) and actual[-1] == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2])
def test_schedule_is_finite_for_the_shortest_runs(kind, steps):
    assert np.all(
        np.isfinite(
            rates(TrainConfig(steps=steps, schedule=kind, warmup_fraction=1.0, decay_fraction=1.0))
        )
    )


def test_weight_decay_acts_on_matrices_only():
    actual = {path for path, on in flatten(weight_decay_mask(SHAPES)).items() if on}
    assert actual == {path for path in flatten(SHAPES) if path.split("/")[-1] in tiny.MATRICES}
    vectors = set(flatten(SHAPES)) - actual
    # A vector of each of two layers has the rank of a matrix.
    assert {
        "trunk/layers/q_scale",
        "trunk/layers/offset",
        "head/depth/blocks/layers/k_scale",
    } <= vectors
    assert {"text_embedder/padding", "level_gate_cross/image_from_depth"} <= vectors


def test_zero_gradient_moves_only_decayed_weights():
    c = TrainConfig(steps=100, learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.5)
    optimizer = make_optimizer(c, 32)
    nothing = jax.tree.map(np.zeros_like, SHAPES)
    updates = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(nothing, SHAPES)
    on, update, weights = flatten(weight_decay_mask(SHAPES)), flatten(updates), flatten(SHAPES)
    for path, u in update.items():
        np.testing.assert_allclose(
            u, -0.1 * 0.5 * weights[path] if on[path] else 0 * weights[path], rtol=1e-5
        )


def test_gradient_is_clipped_by_its_global_norm():
    c = TrainConfig(steps=100, warmup_fraction=0.0, weight_decay=0.0, grad_clip_norm=1.0)
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    grads = {"a": jnp.full((2, 2), 1e4), "b": jnp.full(3, -1e4)}

    def moments(g):
        optimizer = make_optimizer(c, 32)
        return [
            x
            for x in jax.tree.leaves(optimizer.update(g, optimizer.init(params), params)[1])
            if x.ndim
        ]

    unit = jax.tree.map(lambda g: g / (1e4 * np.sqrt(7)), grads)
    small = jax.tree.map(lambda g: 0.3 * g, unit)
    for a, b in zip(moments(grads), moments(unit), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    assert max(float(jnp.abs(m).max()) for m in moments(small)) < 0.31 * max(
        float(jnp.abs(m).max()) for m in moments(unit)
    )


def test_adam_uses_the_config_betas():
    params, grad = {"w": jnp.zeros((1, 1))}, {"w": jnp.full((1, 1), 0.5)}
    optimizer = make_optimizer(TrainConfig(b1=0.7, b2=0.8), 32)
    state = optimizer.update(grad, optimizer.init(params), params)[1]
    moments = sorted(float(m[0, 0]) for m in jax.tree.leaves(state) if m.ndim == 2)
    assert moments == pytest.approx([0.2 * 0.25, 0.3 * 0.5])


def three() -> Config:
    """Image, depth and another of depth's kind, one with a detokenizer and one without."""
    config = tiny.forcing()
    third = replace(tiny.DEPTH, position_id=2, detokenizer_layers=0)
    return replace(config, modalities={**config.modalities, "normals": third})


def test_every_parameter_has_one_group():
    found: dict[str, set[str]] = {}
    for path in flatten(tiny.network(three())[1]):
        found.setdefault(param_group(tuple(path.split("/"))), set()).add(path)
    names = ("image", "depth", "normals")
    pairs = [f"{a}_from_{b}" for a in names for b in names if a != b]
    embedders = [f"level_embedder/{n}" for n in names]
    embedders += [f"level_embedder_cross/{p}" for p in pairs]
    stacks = ("trunk/layers", "head/depth/blocks/layers")
    assert found["input"] == {
        "text_embedder/table",
        "text_embedder/linear/w",
        *(f"tokenizer/{n}/w" for n in names),
        *(f"{e}/inner/w" for e in embedders),
    }
    assert found["output"] == {f"head/{n}/linear/w" for n in names}
    assert found["vector"] == {
        "text_embedder/padding",
        *(f"level_gate_cross/{p}" for p in pairs),
        *(f"{s}/{v}" for s in stacks for v in ("q_scale", "k_scale", "offset")),
    }
    assert found["hidden"] == {
        *(f"{e}/outer/w" for e in embedders),
        *(f"{s}/{w}" for s in stacks for w in ("q", "k", "v", "gate", "up", "out", "down")),
        *("modulation/w", "head/depth/block_modulation/w"),
        *(f"head/{n}/modulation/w" for n in names),
    }
    assert sum(map(len, found.values())) == len(flatten(tiny.network(three())[1]))


@pytest.mark.parametrize(
    "changes", [{"mlp_dim": 96}, {"width": 64, "heads": 8, "kv_heads": 4, "mlp_dim": 96}]
)
def test_groups_match_the_dimensions_that_grow_with_width(changes):
    """A matrix sums over its last dimension but one, which grows in "hidden" and "output" only."""
    narrow, wide = tiny.forcing(), replace(tiny.forcing(), model=replace(tiny.MODEL, **changes))
    ours, theirs = (flatten(tiny.network(config)[1]) for config in (narrow, wide))
    for path, w in ours.items():
        kind = param_group(tuple(path.split("/")))
        if "width" in changes or path.endswith("down"):
            assert (kind in ("hidden", "output")) == (
                path.split("/")[-1] in tiny.MATRICES and theirs[path].shape[-2] > w.shape[-2]
            ), path
        if "width" in changes and kind == "output":
            assert theirs[path].shape[-1] == w.shape[-1]


def test_unknown_parameter_raises():
    with pytest.raises(ValueError, match="no group for the parameter trunk/layers/bias"):
        param_group(("trunk", "layers", "bias"))


# Some of each group: the whole network takes long to compile.
FEW = unflatten(
    {
        path: flatten(SHAPES)[path]
        for path in (
            "text_embedder/table",
            "text_embedder/padding",
            "trunk/layers/q",
            "trunk/layers/offset",
            "head/image/linear/w",
        )
    }
)


def walk(optimizer, params, steps=3):
    """Weights and states of a few steps along gradients that are anything."""
    state, draw = optimizer.init(params), np.random.default_rng(5)
    for _ in range(steps):
        grads = jax.tree.map(lambda p: draw.standard_normal(p.shape, np.float32), params)
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_without_base_width_the_optimizer_is_adamw():
    c = TrainConfig(steps=10, learning_rate=0.1, weight_decay=0.1)
    plain = optax.chain(
        optax.clip_by_global_norm(c.grad_clip_norm),
        optax.adamw(
            schedule(c), b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=weight_decay_mask
        ),
    )
    ours, theirs = walk(make_optimizer(c, 32), FEW), walk(plain, FEW)
    # Bit for bit, and the same tree: checkpoints fit.
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    at_its_own, _ = walk(make_optimizer(replace(c, base_width=32), 32), FEW)
    jax.tree.map(np.testing.assert_array_equal, at_its_own, theirs[0])


def test_each_group_is_adamw_at_its_own_learning_rate():
    """One optax.adamw per group; sums over the width have 1/m of the rate, m times the decay."""
    c, m = TrainConfig(steps=10, learning_rate=0.1, weight_decay=0.1, base_width=8), 4

    def slow(k):
        return schedule(c)(k) / m

    options = {"b1": c.b1, "b2": c.b2, "eps": 1e-8 / m, "mask": weight_decay_mask}
    fast = optax.adamw(schedule(c), weight_decay=c.weight_decay, **options)
    by_group = {"input": fast, "vector": fast} | dict.fromkeys(
        ("hidden", "output"), optax.adamw(slow, weight_decay=m * c.weight_decay, **options)
    )

    def labels(p):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: param_group(tuple(k.key for k in path)), p
        )

    theirs, _ = walk(
        optax.chain(optax.clip_by_global_norm(c.grad_clip_norm), optax.partition(by_group, labels)),
        FEW,
    )
    ours, _ = walk(make_optimizer(c, 32), FEW)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), ours, theirs)
