"""The train step, one for every phase: encode, noise, predict, masked loss per modality, gradient, optimizer, EMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from modality_forcing.config import Config
from modality_forcing.diffusion import distillation, flow, losses, noise_levels, rng
from modality_forcing.modalities.base import Batch, Modality
from modality_forcing.models.dit import DiT
from modality_forcing.models.layout import constrain
from modality_forcing.train.optim import make_optimizer
from modality_forcing.train.sharding import PRESETS, tree_shardings
from modality_forcing.train.state import Params, TrainState

Metrics = dict[str, Float[Array, ""]]
Sums = dict[
    str, tuple[Float[Array, ""], Float[Array, ""]]
]  # a metric's sum and what it is divided by
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def compute_loss(
    model: DiT,
    modalities: Mapping[str, Modality],
    batch: Batch,
    step: Int[Array, ""],
    config: Config,
    null_text: Mapping[str, ArrayLike],
    teacher: DiT | None = None,
) -> tuple[Float[Array, ""], Sums]:
    """Returns the loss of one batch and what to log of it, as sums, so that micro-batches add up.

    Draws depend on (seed, step, batch["index"]) alone, never on the place of an example in the batch.
    """
    keys = {
        s: rng.per_example(rng.stream(config.seed, s, step), batch["index"])
        for s in ("levels", "noise", "text")
    }
    t, given = noise_levels.draw(
        keys["levels"],
        {n: m.levels for n, m in modalities.items()},
        {n: m.given for n, m in modalities.items()},
    )
    x0, observed, eps, x_t = {}, {}, {}, {}
    for i, (name, modality) in enumerate(modalities.items()):
        x0[name], observed[name] = modality.encode(batch)
        noise = jax.vmap(
            lambda k, i=i, s=modality.shape: jax.random.normal(jax.random.fold_in(k, i), s)
        )
        eps[name] = noise(keys["noise"])
        x_t[name] = flow.corrupt(x0[name], eps[name], t[name], observed[name])

    text = drop_text(keys["text"], batch["text"], null_text, config.text.drop)
    prediction = model(x_t, t, text)

    total, sums = jnp.zeros(()), {}
    for name, m in modalities.items():
        loss = losses.velocity_loss(
            prediction[name],
            x0[name],
            eps[name],
            t[name],
            observed[name],
            given[name],
            m.prediction,
            config.train.t_min,
        )  # [b]
        total += m.weight * jnp.mean(loss)
        # Logged per example that has something to learn, so that the task mix does not scale the curve.
        scored = jnp.any(observed[name], axis=(1, 2)) & ~given[name]
        sums[f"loss_{name}"] = (jnp.sum(loss), jnp.sum(scored, dtype=jnp.float32))
    if teacher is not None:
        lead = next(iter(modalities))
        distilled = _distill(teacher, modalities, lead, x_t, t, text, prediction, given, config)
        total += distilled
        sums["loss_distill"] = (distilled, jnp.ones(()))
    return total, sums | {"loss": (total, jnp.ones(()))}


def drop_text(
    keys: Any, text: Mapping[str, Array], null: Mapping[str, ArrayLike], probability: float
) -> dict[str, Array]:
    """Replaces some examples' text by the encoder's own embedding of "", for classifier-free guidance."""
    dropped = jax.vmap(jax.random.uniform)(keys) < probability  # [b]
    return {
        k: jnp.where(dropped.reshape(-1, *[1] * (v.ndim - 1)), jnp.asarray(null[k], v.dtype), v)
        for k, v in text.items()
    }


def _distill(
    teacher, modalities, lead, x_t, t, text, prediction, given, config
) -> Float[Array, ""]:
    """Paper eq. 8: the frozen text-to-image model sees the same noisy lead alone; its velocity is the target."""
    kind, t_min = modalities[lead].prediction, config.train.t_min
    frozen = jax.lax.stop_gradient(teacher({lead: x_t[lead]}, {lead: t[lead]}, text)[lead])
    velocity = lambda y: flow.to_velocity(y.astype(jnp.float32), x_t[lead], t[lead], kind, t_min)
    others = jnp.stack([t[name] for name in modalities if name != lead])  # [m-1 b]
    loss = distillation.distillation_loss(
        velocity(prediction[lead]),
        velocity(frozen),
        jnp.mean(others, axis=0),
        given[lead],
        config.train.distill_high,
        config.train.distill_low,
    )
    return jnp.mean(loss)


def compute_grads(
    loss: Callable[[Params, Batch], tuple[Float[Array, ""], Sums]],
    params: Params,
    batch: Batch,
    micro: int,
) -> tuple[Params, Metrics]:
    """Returns the gradient of the batch's mean loss, added up in float32 over `micro` micro-batches, and the metrics."""
    gradient = jax.grad(loss, has_aux=True)
    if micro == 1:
        grads, sums = gradient(params, batch)
    else:

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            part = jax.tree.map(lambda x: constrain(x, "b"), part)
            return jax.tree.map(jnp.add, total, gradient(params, part)), None

        # Every micro-batch takes its share of each device's examples, so that none has to move.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(len(x) // micro, micro, *x.shape[1:]), 1, 0), batch
        )
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (grads, sums), _ = jax.lax.scan(add, zeros, parts)
        grads = jax.tree.map(lambda g: g / micro, grads)
    return grads, averages(sums)


def averages(sums: Sums) -> Metrics:
    """Returns each metric's mean over what it was counted over, 0 where that is nothing."""
    return {name: value / jnp.maximum(count, 1.0) for name, (value, count) in sums.items()}


def make_step(
    config: Config,
    modalities: Mapping[str, Modality],
    graph: nnx.GraphDef,
    null_text: Mapping[str, ArrayLike],
    teacher: tuple[nnx.GraphDef, Params] | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """Returns the jitted step (state, batch) -> (state, metrics); the state given to it is consumed.

    With a mesh, both come sharded as train/sharding.py lays them out, and the state stays so.
    """
    optimise = make_optimizer(config.train, config.model.width)
    teacher_graph, frozen = teacher if teacher is not None else (graph, None)
    rules = PRESETS[config.mesh.preset]

    def step(state: TrainState, batch: Batch, frozen: Params | None) -> tuple[TrainState, Metrics]:
        def loss(params: Params, batch: Batch) -> tuple[Float[Array, ""], Sums]:
            guide = None if frozen is None else nnx.merge(teacher_graph, frozen)
            return compute_loss(
                nnx.merge(graph, params), modalities, batch, state.step, config, null_text, guide
            )

        grads, metrics = compute_grads(loss, state.params, batch, config.train.accumulate)
        grads = in_shards(grads)  # a device updates its own shard, and needs the sum of no other
        updates, opt_state = optimise.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        # The EMA follows the updated weights; it is short at first, so that it forgets the initial ones.
        decay = jnp.minimum(config.train.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return in_shards(TrainState(state.step + 1, params, opt_state, ema)), metrics

    def in_shards(tree: Any) -> Any:
        return (
            tree
            if mesh is None
            else jax.lax.with_sharding_constraint(tree, tree_shardings(tree, rules, mesh))
        )

    def on_mesh(
        state: TrainState, batch: Batch, frozen: Params | None
    ) -> tuple[TrainState, Metrics]:
        if mesh is None:
            return step(state, batch, frozen)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # what models/layout.py reads
            return step(state, batch, frozen)

    # The teacher is an argument: closed over, it would be compiled in.
    return partial(jax.jit(on_mesh, donate_argnums=0), frozen=frozen)
