"""The train step of every phase: encode, noise, predict, loss, gradient, optimizer, EMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from modality_forcing.config import Config
from modality_forcing.diffusion import flow, losses, noise_levels, rng
from modality_forcing.diffusion.flow import NoisyTokens
from modality_forcing.modalities.base import Batch, Modality, given_together
from modality_forcing.models.layout import constrain
from modality_forcing.train import spikes, step_metrics
from modality_forcing.train.freezing import Teacher, join_params
from modality_forcing.train.optim import make_optimizer, schedule
from modality_forcing.train.sharding import PRESETS, traced_on, tree_shardings
from modality_forcing.train.state import Params, TrainState
from modality_forcing.train.step_metrics import BY_LEVEL, Metrics, Sums, normalize_metrics

Model = Callable[[dict[str, Array], dict[str, Array], dict[str, Array]], Mapping[str, Array]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def compute_loss(
    model: Model,
    modalities: Mapping[str, Modality],
    batch: Batch,
    step: Int[Array, ""],
    *,
    config: Config,
    null_text: Mapping[str, ArrayLike],
    teacher: Model | None = None,
) -> tuple[Float[Array, ""], Sums]:
    """Returns the loss of a batch and its metrics, as sums so that micro-batches add up.

    Random numbers depend on (seed, step, batch["index"]) alone, not on an example's position in the
    batch.
    """
    c = config.train
    tokens = add_noise(modalities, batch, config.seed, step)
    x_t, t = {n: x.x_t for n, x in tokens.items()}, {n: x.t for n, x in tokens.items()}
    keys = rng.per_example(rng.named_key(config.seed, "text", step), batch["index"])
    text = text_dropout(keys, batch["text"], null_text, config.text.text_dropout)
    prediction = model(x_t, t, text)

    total, sums = jnp.zeros(()), {}
    for name, m in modalities.items():
        x = tokens[name]
        loss = losses.velocity_loss(prediction[name], x, m.prediction, t_min=c.t_min)  # [b]
        total += m.loss_weight * jnp.mean(loss)
        # Only examples with a target count: the curve does not depend on the mix of tasks.
        has_target = jnp.any(x.mask, axis=(1, 2)) & ~x.is_cond
        sums[f"loss_{name}"] = (jnp.sum(loss), jnp.sum(has_target, dtype=jnp.float32))
        sums[f"loss_{name}{BY_LEVEL}"] = step_metrics.sum_by_level(loss, x.t, has_target)
    if teacher is not None:
        # Paper, eq. 8: the target is the velocity of the frozen text-to-image model, which sees the
        # primary modality alone.
        primary, *others = modalities
        x, m = tokens[primary], modalities[primary]
        frozen = jax.lax.stop_gradient(teacher({primary: x.x_t}, {primary: x.t}, text)[primary])
        student_v, teacher_v = (
            flow.to_velocity(y.astype(jnp.float32), x.x_t, x.t, m.prediction, t_min=c.t_min)
            for y in (prediction[primary], frozen)
        )
        t_others = jnp.mean(jnp.stack([t[name] for name in others]), axis=0)
        distilled = jnp.mean(
            losses.distillation_loss(
                student_v, teacher_v, t_others, x.is_cond, high=c.distill_high, low=c.distill_low
            )
        )
        total += distilled
        sums["loss_distill"] = (distilled, jnp.ones(()))
    return total, sums | {"loss": (total, jnp.ones(()))}


def add_noise(
    modalities: Mapping[str, Modality], batch: Batch, seed: int, step: Int[Array, ""]
) -> dict[str, NoisyTokens]:
    """Returns the tokens of a batch at random noise levels, by modality."""
    keys = {
        name: rng.per_example(rng.named_key(seed, name, step), batch["index"])
        for name in ("levels", "noise")
    }
    t, is_cond = noise_levels.sample_timesteps(
        keys["levels"],
        {n: m.noise_distribution for n, m in modalities.items()},
        {n: m.cond_prob for n, m in modalities.items()},
        given_together(modalities),
    )
    tokens = {}
    for i, (name, m) in enumerate(modalities.items()):
        x0, mask = m.to_tokens(batch)
        eps = jax.vmap(partial(_normal, i, m.shape))(keys["noise"])
        x_t = flow.add_noise(x0, eps, t[name], mask)
        tokens[name] = NoisyTokens(x0, mask, eps, t[name], x_t, is_cond[name])
    return tokens


def _normal(stream: int, shape: tuple[int, ...], key: Key[Array, ""]) -> Array:
    return jax.random.normal(jax.random.fold_in(key, stream), shape)


def text_dropout(
    keys: Key[Array, " b"],
    text: Mapping[str, Array],
    null: Mapping[str, ArrayLike],
    probability: float,
) -> dict[str, Array]:
    """Replaces the text of some examples by an empty caption's, for classifier-free guidance."""
    dropped = jax.vmap(jax.random.uniform)(keys) < probability  # [b]
    return {
        k: jnp.where(dropped.reshape(-1, *[1] * (v.ndim - 1)), jnp.asarray(null[k], v.dtype), v)
        for k, v in text.items()
    }


def compute_grads(
    loss: Callable[[Params, Batch], tuple[Float[Array, ""], Sums]],
    params: Params,
    batch: Batch,
    num_microbatches: int,
) -> tuple[Params, Metrics]:
    """Returns the gradient of the mean loss, accumulated in float32, and the metrics."""
    gradient = jax.grad(loss, has_aux=True)
    if num_microbatches == 1:
        grads, sums = gradient(params, batch)
        return grads, normalize_metrics(sums)

    def split(x: Array) -> Array:
        # Every micro-batch takes its share of each device's examples: none changes its device.
        strided = x.reshape(len(x) // num_microbatches, num_microbatches, *x.shape[1:])
        return jnp.moveaxis(strided, 1, 0)

    def accumulate(total: tuple[Params, Sums], part: Batch) -> tuple[tuple[Params, Sums], None]:
        part = jax.tree.map(lambda x: constrain(x, "b"), part)
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, parts)
    return jax.tree.map(lambda g: g / num_microbatches, grads), normalize_metrics(sums)


def make_step(
    config: Config,
    modalities: Mapping[str, Modality],
    graph: nnx.GraphDef,
    null_text: Mapping[str, ArrayLike],
    *,
    teacher: Teacher | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """Returns the jitted step (state, batch) -> (state, metrics), which donates its input state.

    With a mesh, state and batch are sharded as in train/sharding.py, and the state stays so.
    """
    c, rules = config.train, PRESETS[config.mesh.preset]
    optimizer = optax.with_extra_args_support(make_optimizer(c, config.model.width))
    learning_rate = schedule(c)

    def step(
        state: TrainState, batch: Batch, teacher_params: Params | None
    ) -> tuple[TrainState, Metrics]:
        teacher_model = None
        if teacher is not None and teacher_params is not None:
            weights = teacher.all_params(teacher_params, state.frozen)
            teacher_model = nnx.merge(teacher.graph, weights)
        fixed = {"config": config, "null_text": null_text, "teacher": teacher_model}

        def loss(params: Params, batch: Batch) -> tuple[Float[Array, ""], Sums]:
            model = nnx.merge(graph, join_params(params, state.frozen))
            return compute_loss(model, modalities, batch, state.step, **fixed)

        grads, metrics = compute_grads(loss, state.params, batch, c.grad_accum_steps)
        # Reduce-scatter: a device updates its own shard and needs only that part of the sum.
        grads = constrain_state(grads)
        metrics |= step_metrics.norms("grad_norm", grads)
        seen = {name: metrics[name] for name in ("loss", "grad_norm")}
        if spikes.watches(c):
            found = spikes.is_spike(state.opt_state, **seen, deviations=c.spike_deviations)
            metrics[spikes.SPIKE] = found.astype(jnp.float32)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **seen)
        params = cast(Params, optax.apply_updates(state.params, updates))
        # An EMA of the updated weights; its decay starts small to forget the initial ones.
        decay = jnp.minimum(c.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
        # Of the difference: after a second use of `updates`, XLA may round the weights otherwise.
        changes = jax.tree.map(jnp.subtract, params, state.params)
        metrics |= step_metrics.norms("update_norm", changes)
        metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        after = TrainState(state.step + 1, params, opt_state, ema, state.frozen)
        return constrain_state(after), metrics

    def constrain_state(tree: PyTree) -> PyTree:
        if mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, tree_shardings(tree, rules, mesh))

    # The teacher's weights are an argument: closed over, they would be compiled in as constants.
    weights = None if teacher is None else teacher.params
    return partial(jax.jit(traced_on(step, mesh), donate_argnums=0), teacher_params=weights)
